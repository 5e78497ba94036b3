"""The formats of tool calls: rows, the first whose sign is found in a chat template is the model's."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from ...errors import ConfigError
from . import hermes, llama3_json, mistral, pythonic
from . import json as generic
from .calls import Format

FORMATS: dict[str, Format] = {
    row.name: row for row in (mistral.FORMAT, hermes.FORMAT, pythonic.FORMAT, llama3_json.FORMAT, generic.FORMAT)
}


def format_named(name: str) -> Format:
    """The format of that name. Raises ConfigError that says which there are."""
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(FORMATS)}."
        raise ConfigError(f"There is no tool_call_format {name!r}; {hint}")
    return FORMATS[name]


def format_of(template: str, special_tokens: Collection[str] = ()) -> Format:
    """The format that a chat template shows: by its own text first, then by the tokenizer's special tokens."""
    for row in FORMATS.values():
        if any(sign in template for sign in row.signs):
            return row
    for row in FORMATS.values():
        if any(sign in special_tokens for sign in row.signs):
            return row
    return generic.FORMAT
