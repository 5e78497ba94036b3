"""Conversion of a checkpoint to a file of params: read | map | quantize | write, some rows of a tensor at a time.

Nothing here knows a model family or a scheme by name: families provide weight tables, schemes a conversion plan.
"""
