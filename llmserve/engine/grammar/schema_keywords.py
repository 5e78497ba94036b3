"""JSON schemas that llguidance would accept but not enforce, or not survive: found by keyword and refused by its name.

Most of these were found by validating answers to random schemas (`tests/api/test_schemas.py`), which also shows when a
check can go because the library has been mended. Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import lcm
from typing import Any, TypeGuard
from urllib.parse import unquote

from ...errors import RequestError

MAX_REFERENCES = 1_000
MAX_PROPERTIES = 1_000  # of one object
MAX_MULTIPLE = 10_000

# Of strings; any other is an annotation, as JSON Schema has it, since nobody could say what it means.
FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown")
)
_BY_NAME = frozenset(("properties", "patternProperties", "dependentSchemas", "$defs", "definitions"))
_VALUES = frozenset(("const", "enum", "default", "examples"))

Object = dict[str, Any]


def without_annotations(schema: Any) -> Any:
    """A schema, less the formats that nobody knows."""
    if isinstance(schema, list):
        return [without_annotations(it) for it in schema]
    if not isinstance(schema, dict):
        return schema
    kept: Object = {}
    for word, value in schema.items():
        if word == "format" and isinstance(value, str) and value not in FORMATS:
            continue
        if word in _BY_NAME and isinstance(value, dict):
            value = {name: without_annotations(its) for name, its in value.items()}
        elif word not in _VALUES:
            value = without_annotations(value)
        kept[word] = value
    return kept


def check_keywords(schema: Any, objects: list[Object], param: str | None) -> None:
    """Raise RequestError for what cannot be enforced. `objects` are all JSON objects in `schema`, itself included."""
    references = sum("$ref" in it for it in objects)
    complaint = next((complaint for it in objects if (complaint := _of_one_object(it))), None) or _of_all(objects)
    if references > MAX_REFERENCES:  # before they are followed
        complaint = f"it has {references} $ref, and {MAX_REFERENCES} are the limit"
    if complaint is None and references and _turns_in_a_circle(schema, objects):
        complaint = "a $ref leads back to itself with nothing in between, so that no value can be told to fit"
    if complaint is not None:
        raise RequestError(
            f"The JSON schema cannot be enforced, so it is refused: {complaint}.",
            param=param,
            code="unsupported_grammar",
        )


def _of_one_object(it: Object) -> str | None:
    properties, required = it.get("properties"), it.get("required")
    if isinstance(properties, dict) and len(properties) > MAX_PROPERTIES:
        return f"properties names {len(properties)}, and {MAX_PROPERTIES} are the limit"
    multiple = it.get("multipleOf")
    if _is_number(multiple) and not _is_moderate(multiple):
        return f"multipleOf is {multiple!r}, and can only have four digits"
    # Names that are not in properties may come twice in an answer, and count once.
    least = it.get("minProperties")
    named_only = it.get("additionalProperties") is False and "patternProperties" not in it
    if _is_number(least) and not named_only and least > (len(required) if isinstance(required, list) else 0):
        return "minProperties is more than what is required, and additionalProperties is not false"
    return "enum is empty" if it.get("enum") == [] else None


def _of_all(objects: list[Object]) -> str | None:
    if any(isinstance(it.get("items"), list) for it in objects) and any("prefixItems" in it for it in objects):
        return "items as a list and prefixItems are of different drafts of JSON Schema"
    together = 1  # millionth: what must be a multiple of two numbers is one of their common multiple
    for multiple in {it["multipleOf"] for it in objects if _is_number(it.get("multipleOf"))}:
        together = lcm(together, round(multiple * 10**6))
        if not _is_moderate(together / 10**6):
            return "the values of multipleOf have no common multiple of four digits"
    # The library lets through a whole number that is excluded where the other bound is a fraction next to it. The two
    # may stand in different places and be brought together by allOf or $ref.
    lows = [it[word] for it in objects for word in ("minimum", "exclusiveMinimum") if _is_number(it.get(word))]
    highs = [it[word] for it in objects for word in ("maximum", "exclusiveMaximum") if _is_number(it.get(word))]
    for it in objects:
        low, high = it.get("exclusiveMinimum"), it.get("exclusiveMaximum")
        if it.get("type") == "integer":
            continue
        if _is_number(low) and low == int(low) and any(low < other < low + 1 for other in highs):
            return f"exclusiveMinimum {low} has an upper bound less than 1 above it"
        if _is_number(high) and high == int(high) and any(high - 1 < other < high for other in lows):
            return f"exclusiveMaximum {high} has a lower bound less than 1 below it"
    return None


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_moderate(multiple: float) -> bool:
    """Whether an automaton of moderate size can tell the multiples: as many states as the number has units."""
    digits = f"{multiple:.12f}".replace(".", "").strip("0")
    return 0 < multiple <= MAX_MULTIPLE and 0 < int(digits or 0) <= MAX_MULTIPLE


def _turns_in_a_circle(schema: Any, objects: list[Object]) -> bool:
    """Whether some schema applies itself to the same value, by way of $ref, allOf, anyOf and oneOf."""
    done: set[int] = set()
    for start in objects:
        path: list[tuple[Object, Iterator[Object]]] = [(start, _applied(schema, start))]
        within = {id(start)}
        while path and id(start) not in done:
            it, rest = path[-1]
            following = next(rest, None)
            if following is None:
                path.pop()
                within.discard(id(it))
                done.add(id(it))
            elif id(following) in within:
                return True
            elif id(following) not in done:
                path.append((following, _applied(schema, following)))
                within.add(id(following))
    return False


def _applied(schema: Any, it: Object) -> Iterator[Object]:
    """The schemas that a schema applies to the same value."""
    for word in ("allOf", "anyOf", "oneOf"):
        members = it.get(word)
        yield from (member for member in (members if isinstance(members, list) else ()) if isinstance(member, dict))
    target = _at(schema, it.get("$ref"))
    if isinstance(target, dict):
        yield target


def _at(schema: Any, pointer: Any) -> Any:
    """What a local $ref points to; None if nothing, or if it is of another kind."""
    if not isinstance(pointer, str) or not pointer.startswith("#"):
        return None
    place = schema
    for step in unquote(pointer[1:]).split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(place, list) and step.isdecimal() and int(step) < len(place):
            place = place[int(step)]
        elif isinstance(place, dict):
            place = place.get(step)
        else:
            return None
    return place
