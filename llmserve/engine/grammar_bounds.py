"""What a grammar may hold at most, checked before a parser or a compiler sees it; and what the compiler gets wrong.

The numbers leave what people write far below, and keep what the library does for the worst of the rest within a
second and some hundred megabytes. Standard library only.
"""

from __future__ import annotations

import json
from typing import Any

from ..errors import RequestError

MAX_CHARACTERS = 128 * 2**10
MAX_DEPTH = 64
MAX_VALUES = 10_000  # in a schema
MAX_REFERENCES = 1_000
MAX_PROPERTIES = 1_000  # of one object
MAX_MULTIPLE = 10_000
MAX_CHOICES = 5_000
MAX_RULES = 1_000  # in a grammar that is written as rules


def check_text(text: str, param: str | None) -> None:
    """Refuse a regular expression or a grammar that is too long, nested too deeply or has too many rules."""
    _check_length(text, param)
    rules = text.count(":")
    if rules > MAX_RULES:
        raise RequestError(f"The grammar has about {rules} rules, and {MAX_RULES} are the limit.", param=param)
    depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if depth > 2 * MAX_DEPTH:
            raise RequestError(f"The grammar is nested more than {2 * MAX_DEPTH} levels deep.", param=param)


def choices(text: str, param: str | None) -> list[str]:
    """The texts of a list to choose from, written as JSON."""
    _check_length(text, param)
    texts = json.loads(text)
    if not isinstance(texts, list) or not all(isinstance(choice, str) for choice in texts):
        raise RequestError("The texts to choose from must be a list of strings.", param=param)
    if not 0 < len(texts) <= MAX_CHOICES:
        raise RequestError(f"There may be 1 to {MAX_CHOICES} texts to choose from, not {len(texts)}.", param=param)
    return texts


def check_schema(text: str, param: str | None) -> Any:
    """Read a JSON schema; refuse one that is too large, or that the library would take and not keep to."""
    _check_length(text, param)
    schema = json.loads(text)
    level: list[Any] = [schema]
    values = references = depth = 0
    while level:
        depth += 1
        values += len(level)
        if depth > MAX_DEPTH:
            raise RequestError(f"The JSON schema is nested more than {MAX_DEPTH} levels deep.", param=param)
        if values > MAX_VALUES:
            raise RequestError(f"The JSON schema holds more than {MAX_VALUES} values.", param=param)
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                references += "$ref" in value
                _check_keywords(value, param)
                inner += value.values()
            elif isinstance(value, list):
                inner += value
        level = inner
    if references > MAX_REFERENCES:
        raise RequestError(f"The JSON schema has {references} $ref, and {MAX_REFERENCES} are the limit.", param=param)
    return schema


def _check_length(text: str, param: str | None) -> None:
    if len(text) > MAX_CHARACTERS:
        raise RequestError(
            f"The grammar or JSON schema has {len(text)} characters, and {MAX_CHARACTERS} are the limit.", param=param
        )


def _check_keywords(schema: dict[str, Any], param: str | None) -> None:
    properties = schema.get("properties")
    if isinstance(properties, dict) and len(properties) > MAX_PROPERTIES:
        raise RequestError(
            f"properties of the JSON schema names {len(properties)}, and {MAX_PROPERTIES} are the limit.", param=param
        )
    multiple = schema.get("multipleOf")
    if isinstance(multiple, (int, float)) and not _is_moderate(multiple):
        raise RequestError(
            f"multipleOf {multiple!r} in the JSON schema cannot be enforced: at most four digits can.",
            param=param,
        )


def _is_moderate(multiple: float) -> bool:
    """Whether an automaton of moderate size can tell the multiples: as many states as the number has units."""
    digits = f"{multiple:.12f}".replace(".", "").strip("0") if multiple else "0"
    return 0 < multiple <= MAX_MULTIPLE and 0 < int(digits or 0) <= MAX_MULTIPLE
