"""Parsers of a model's text: reasoning, and one file for each format of tool calls."""
