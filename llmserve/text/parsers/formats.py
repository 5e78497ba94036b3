"""The formats of tool calls, as rows: a model's is the first whose sign is in its chat template."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from ...errors import ConfigError
from . import hermes, llama3_json, mistral, pythonic
from . import json as generic
from .calls import CallFormat

CALL_FORMATS: dict[str, CallFormat] = {
    row.name: row for row in (mistral.FORMAT, hermes.FORMAT, pythonic.FORMAT, llama3_json.FORMAT, generic.FORMAT)
}


def format_named(name: str) -> CallFormat:
    """The format of that name. Raises ConfigError that says which there are."""
    if name not in CALL_FORMATS:
        near = difflib.get_close_matches(name, CALL_FORMATS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(CALL_FORMATS)}."
        raise ConfigError(f"There is no tool_call_format {name!r}; {hint}")
    return CALL_FORMATS[name]


def format_of(template: str, special_tokens: Collection[str] = ()) -> CallFormat:
    """The format that a chat template shows: by its own text first, then by the tokenizer's special tokens."""
    for row in CALL_FORMATS.values():
        if any(sign in template for sign in row.signs):
            return row
    for row in CALL_FORMATS.values():
        if any(sign in special_tokens for sign in row.signs):
            return row
    return generic.FORMAT
