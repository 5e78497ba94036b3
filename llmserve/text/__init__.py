"""Tokens and text: tokenizer, chat template in its sandbox, and parsers of what a model writes."""
