"""From a Hugging Face checkpoint to a file of params: read | map | quantize | write, a tensor's rows at a time.

Nothing here knows a model family or a scheme by name: families hand in weight tables, schemes a conversion plan.
"""
