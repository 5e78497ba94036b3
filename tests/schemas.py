"""Random JSON schemas: all that people write, and much of what nobody can enforce. Seeded, so that a failure can be had
again from its number."""

from __future__ import annotations

import random
from typing import Any

Schema = Any  # an object or a boolean

NAMES = ["a", "b", "name", "the key", "", "é", '"quoted"', "a\\b", "$id of", "default", "x-y", "line\nbreak", "名"]
PATTERNS = ["^[a-c]+$", "x", r"^\d{3}-\d{2}$", "^(ab|cd)*$", "[^a]$", "^.{2,5}$", r"\w+@\w+", "^$", "é+", r"^\S+ \S+$"]
BAD_PATTERNS = ["(?=a)b", "(a)\\1", "[", "(?<x>a)\\k<x>", "^(?!a)"]
FORMATS = ["date", "date-time", "email", "ipv4", "ipv6", "uuid", "uri", "hostname", "duration"]
BAD_FORMATS = ["regex", "idn-email", "json-pointer", "colour"]
VALUES: list[Any] = ["a", "", 'é\n"\\', 0, -3, 1.5, 2**40, True, False, None, [], [1, "x"], {}, {"a": [{"k": None}]}]


class Generator:
    """One schema; `odd` is how often something is in it that the library may not know."""

    def __init__(self, seed: int, odd: float = 0.04) -> None:
        self.rng = random.Random(seed)
        self.odd = odd
        self.definitions: list[str] = []

    def schema(self) -> Schema:
        """The whole of it, with its definitions."""
        rng = self.rng
        if rng.random() < 0.3:
            self.definitions = [f"d{i}" for i in range(rng.randint(1, 3))]
        whole = self.any(3)
        if not self.definitions or not isinstance(whole, dict):
            return whole
        place = rng.choice(["$defs", "$defs", "definitions"])
        self.place = place
        text = {name: self.any(2) for name in self.definitions}
        return _moved({**whole, "$defs": text}, place)

    def any(self, depth: int) -> Schema:
        rng = self.rng
        if rng.random() < self.odd:
            return self.rare(depth)
        if self.definitions and rng.random() < 0.15:
            return {"$ref": f"#/$defs/{rng.choice(self.definitions)}"}
        simple = [self.string, self.number, self.enum, self.plain]
        deep = [self.object, self.object, self.object, self.array, self.array, self.union, self.both]
        made: dict[str, Any] = rng.choice(simple if depth <= 0 else [*simple, *deep])(depth)
        if rng.random() < 0.1:
            made = {**made, **rng.choice([{"title": "T"}, {"description": "d"}, {"default": 1}, {"examples": [1]}])}
        return made

    def string(self, depth: int) -> Schema:
        rng, made = self.rng, dict[str, Any](type="string")
        kind = rng.randrange(5)
        if kind == 0:
            made["pattern"] = rng.choice(PATTERNS)
        elif kind == 1:
            made["format"] = rng.choice(FORMATS)
        elif kind == 2:
            made["minLength"] = rng.randrange(4)
        if kind in (2, 3) or rng.random() < 0.1:
            made["maxLength"] = rng.randrange(2, 9)
        if rng.random() < self.odd:
            made |= rng.choice([{"pattern": rng.choice(BAD_PATTERNS)}, {"format": rng.choice(BAD_FORMATS)}])
        return made

    def number(self, depth: int) -> Schema:
        rng = self.rng
        made: dict[str, Any] = {"type": rng.choice(["integer", "integer", "number"])}
        low = rng.choice([None, None, -7, 0, 1, 12, -1000, 0.5, -2.25])
        if low is not None:
            made[rng.choice(["minimum", "minimum", "exclusiveMinimum"])] = low
        if rng.random() < 0.4:
            high = (low or 0) + rng.choice([1, 3, 100, 99999, 0.75])
            made[rng.choice(["maximum", "maximum", "exclusiveMaximum"])] = high
        if rng.random() < 0.15:
            made["multipleOf"] = rng.choice([2, 3, 5, 10, 0.5, 0.25, 7])
        return made

    def enum(self, depth: int) -> Schema:
        rng = self.rng
        if rng.random() < 0.3:
            return {"const": rng.choice(VALUES)}
        if rng.random() < 0.05:
            return {"enum": [f"v{i}" for i in range(500)]}
        return {"enum": rng.sample(VALUES, rng.randint(1, 5))}

    def plain(self, depth: int) -> Schema:
        types = ["boolean", "null", "string", "integer", "number", "object", "array"]
        if self.rng.random() < 0.3:
            return {"type": self.rng.sample(types, self.rng.randint(1, 3))}
        return self.rng.choice([{"type": self.rng.choice(types)}, {"type": "boolean"}, {}])

    def object(self, depth: int) -> Schema:
        rng = self.rng
        names = rng.sample(NAMES, rng.randint(0, 4))
        made: dict[str, Any] = {"type": "object", "properties": {name: self.any(depth - 1) for name in names}}
        if names and rng.random() < 0.8:
            made["required"] = rng.sample(names, rng.randint(1, len(names)))
        more = rng.random()
        if more < 0.6:
            made["additionalProperties"] = False
        elif more < 0.75:
            made["additionalProperties"] = self.any(depth - 2)
        if rng.random() < 0.08:
            made["patternProperties"] = {rng.choice(["^x-", "_id$", "^[0-9]+$"]): self.any(depth - 2)}
        if rng.random() < 0.08:
            made[rng.choice(["minProperties", "maxProperties"])] = rng.randint(0, 3)
        if rng.random() < self.odd:
            made |= rng.choice(
                [
                    {"propertyNames": {"maxLength": 3}},
                    {"dependentRequired": {"a": ["b"]}},
                    {"dependentSchemas": {"a": {"required": ["b"]}}},
                    {"unevaluatedProperties": False},
                    {"required": ["nowhere"]},
                ]
            )
        return made

    def array(self, depth: int) -> Schema:
        rng = self.rng
        made: dict[str, Any] = {"type": "array"}
        if rng.random() < 0.85:
            made["items"] = self.any(depth - 1)
        if rng.random() < 0.15:
            made["prefixItems"] = [self.any(depth - 1) for _ in range(rng.randint(1, 2))]
        if rng.random() < 0.3:
            made["minItems"] = rng.randrange(4)
        if rng.random() < 0.5:
            made["maxItems"] = made.get("minItems", 0) + rng.randrange(4)
        if rng.random() < self.odd:
            odd: list[Schema] = [{"uniqueItems": True}, {"contains": {"type": "integer"}}, {"unevaluatedItems": False}]
            made |= rng.choice([*odd, {"items": [{}, {}]}])
        return made

    def union(self, depth: int) -> Schema:
        word = self.rng.choice(["anyOf", "anyOf", "oneOf"])
        made: dict[str, Any] = {word: [self.any(depth - 1) for _ in range(self.rng.randint(1, 3))]}
        if self.rng.random() < 0.2:  # with something beside it, which holds as well
            more = [{"type": "object"}, {"type": ["string", "integer"]}, {"maxLength": 5}, {"minimum": 3}]
            made |= self.rng.choice(more)
        return made

    def both(self, depth: int) -> Schema:
        return {"allOf": [self.any(depth - 1) for _ in range(self.rng.randint(1, 2))]}

    def rare(self, depth: int) -> Schema:
        rng = self.rng
        inner = self.any(depth - 1) if depth > 0 else {}
        return rng.choice(
            [
                {"not": inner},
                {"if": {"type": "string"}, "then": {"minLength": 3}, "else": inner},
                {"$ref": "https://example.org/schema.json"},
                {"$ref": "#/$defs/missing"},
                {"$dynamicRef": "#node"},
                {"type": "thing"},
                {"anyOf": []},
                {"enum": []},
                {"type": "string", "minLength": 5, "maxLength": 2},
                {"type": "integer", "minimum": 2, "maximum": 1},
                {"type": "integer", "multipleOf": 0},
                {"type": "number", "multipleOf": 0.333333333},
                {"enum": [1, 1e20]},
                {"x-custom": 1, "type": "boolean"},
                {"$comment": "nothing", "readOnly": True},
                {"type": "string", "contentEncoding": "base64"},
                {"type": "array", "minItems": 10**7},
                {"allOf": [{"type": "string"}, {"type": "integer"}]},
                {"$ref": "#"},
                True,
                False,
                _nested(inner, 70),
            ]
        )


def _nested(schema: Schema, depth: int) -> Schema:
    for _ in range(depth):
        schema = {"type": "array", "items": schema, "maxItems": 1}
    return schema


def _moved(value: Any, place: str) -> Any:
    """The schema with its definitions under another name."""
    if isinstance(value, dict):
        return {place if k == "$defs" else k: _moved(v, place) for k, v in value.items()}
    if isinstance(value, list):
        return [_moved(v, place) for v in value]
    return value.replace("#/$defs/", f"#/{place}/") if isinstance(value, str) else value


def keywords(schema: Schema) -> set[str]:
    """All keys of a schema, wherever they stand."""
    if isinstance(schema, dict):
        return set(schema) | {k for v in schema.values() for k in keywords(v)}
    return {k for v in schema for k in keywords(v)} if isinstance(schema, list) else set()
