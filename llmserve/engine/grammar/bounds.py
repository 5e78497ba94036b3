"""Bounds on grammars, checked before a parser or a compiler sees them.

The numbers leave what people write far below, and keep what the library does for the worst of the rest within a
second and some hundred megabytes. Standard library only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from ...errors import RequestError
from .schema_keywords import check_keywords

MAX_CHARACTERS = 128 * 2**10
MAX_DEPTH = 64
MAX_VALUES = 10_000  # in a schema
MAX_CHOICES = 5_000
MAX_RULES = 1_000  # in a grammar that is written as rules
_TOO_LARGE = 2.0**63


def check_rules(text: str, param: str | None) -> None:
    """Refuse a grammar that has too many rules, or a JSON schema in it that would be refused by itself."""
    check_text(text, param)
    rules = text.count(":") - text.count("::=")
    if rules > MAX_RULES:
        raise RequestError(f"The grammar has about {rules} rules, and {MAX_RULES} are the limit.", param=param)
    _check_embedded(text, param)


def check_text(text: str, param: str | None) -> None:
    """Refuse a regular expression or a grammar that is too long or nested too deeply."""
    _check_length(text, param)
    depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if depth > 2 * MAX_DEPTH:
            raise RequestError(f"The grammar is nested more than {2 * MAX_DEPTH} levels deep.", param=param)


def read_choices(text: str, param: str | None) -> list[str]:
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
    objects: list[dict[str, Any]] = []
    level: list[Any] = [schema]
    values = depth = 0
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
                objects.append(value)
                inner += value.values()
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, (int, float)) and not abs(value) < _TOO_LARGE:  # also NaN, which json reads
                raise RequestError(f"The number {value!r} in the JSON schema is out of bounds.", param=param)
        level = inner
    check_keywords(schema, objects, param)
    return schema


def check_total(lengths: Iterable[int], param: str | None) -> None:
    """Refuse grammars that are too long together."""
    total = sum(lengths)
    if total > MAX_CHARACTERS:
        raise RequestError(
            f"The grammar or JSON schema has {total} characters, and {MAX_CHARACTERS} are the limit.", param=param
        )


def _check_embedded(text: str, param: str | None) -> None:
    """Hold the JSON schemas within a grammar to what holds for others, and to the library's strictness."""
    for found in re.finditer(r"%json\s*", text):
        try:
            schema, _ = json.JSONDecoder().raw_decode(text, found.end())
        except (ValueError, RecursionError):
            continue  # it is no JSON, as the library will say, or not meant
        if isinstance(schema, dict) and "x-guidance" in schema:
            raise RequestError("x-guidance is not supported within a grammar.", param=param)
        check_schema(json.dumps(schema), param)


def _check_length(text: str, param: str | None) -> None:
    check_total([len(text)], param)
