"""Structured output as requests ask for it: OpenAI's response_format, and what other servers call the same thing.

Every way of asking comes to one `Grammar`, or to a RequestError: nothing that was asked for is dropped. Whether the
grammar can be enforced shows when the engine compiles it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ...engine import Grammar
from ...errors import RequestError


def requested_grammar(fields: Mapping[str, Any]) -> Grammar | None:
    """The grammar that a request's fields ask for, None for free text. RequestError for two of them, or a wrong one."""
    found = [
        grammar
        for name, read in _FIELDS.items()
        if fields.get(name) is not None and (grammar := read(fields[name], name)) is not None
    ]
    if len(found) > 1:
        names = " and ".join(str(grammar.param) for grammar in found)
        raise RequestError(f"{names} each say what the answer must be; send one of them.", param=found[1].param)
    if fields.get("guided_whitespace_pattern") is not None:
        raise _unsupported("guided_whitespace_pattern")
    return found[0] if found else None


def schema_grammar(schema: Any, param: str) -> Grammar:
    """A JSON schema, as an object or as its text."""
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{param} is not valid JSON: {error}.", param=param) from None
    if not isinstance(schema, (dict, bool)):
        raise RequestError(f"{param} must be a JSON schema, an object.", param=param)
    return Grammar("json_schema", json.dumps(schema), param)


def _response_format(value: Any, param: str) -> Grammar | None:
    wanted = _object(value, param)
    kind = wanted.get("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        schema = wanted.get("schema")
        return Grammar("json_object", param=param) if schema is None else schema_grammar(schema, f"{param}.schema")
    if kind == "json_schema":
        inner = wanted.get("json_schema")
        if inner is None:  # llama.cpp's, and that of /v1/responses
            return schema_grammar(_required(wanted, "schema", param), f"{param}.schema")
        param = f"{param}.json_schema"
        return schema_grammar(_required(_object(inner, param), "schema", param), f"{param}.schema")
    if kind == "regex":
        return _text("regex")(_required(wanted, "pattern", param), f"{param}.pattern")
    if kind == "grammar":
        return _text("ebnf")(_required(wanted, "grammar", param), f"{param}.grammar")
    raise RequestError(
        f"{param}.type {kind!r} is not supported; text, json_object, json_schema, regex and grammar are.",
        param=f"{param}.type",
        code="unsupported_parameter",
    )


def _structured_outputs(value: Any, param: str) -> Grammar | None:
    """vLLM's object with one of json, regex, choice, grammar and json_object in it."""
    wanted = {name: its for name, its in _object(value, param).items() if its not in (None, False)}
    for name in wanted:
        if name not in (*_STRUCTURED, "disable_fallback"):  # nothing falls back here
            raise _unsupported(f"{param}.{name}")
    found = [_STRUCTURED[name](its, f"{param}.{name}") for name, its in wanted.items() if name in _STRUCTURED]
    if len(found) > 1:
        raise RequestError(f"{param} must hold one of {', '.join(_STRUCTURED)}.", param=param)
    return found[0] if found else None


def _text(kind: Any, *, may_be_empty: bool = False) -> Callable[[Any, str], Grammar | None]:
    def read(value: Any, param: str) -> Grammar | None:
        if not isinstance(value, str):
            raise RequestError(f"{param} must be a string.", param=param)
        if not value and may_be_empty:
            return None
        if not (value if kind == "regex" else value.strip()):
            raise RequestError(f"{param} is empty; leave it out for free text.", param=param)
        return Grammar(kind, value, param)

    return read


def _choice(value: Any, param: str) -> Grammar:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise RequestError(f"{param} must be a list of strings, at least one.", param=param)
    return Grammar("choice", json.dumps(value), param)


def _json_object(value: Any, param: str) -> Grammar | None:
    return Grammar("json_object", param=param) if value else None


def _object(value: Any, param: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{param} must be an object.", param=param)
    return value


def _required(fields: dict[str, Any], name: str, param: str) -> Any:
    if fields.get(name) is None:
        raise RequestError(f"{param}.{name} is required.", param=f"{param}.{name}")
    return fields[name]


def _unsupported(name: str) -> RequestError:
    return RequestError(f"{name} is not supported.", param=name, code="unsupported_parameter")


_Reader = Callable[[Any, str], Grammar | None]
_STRUCTURED: dict[str, _Reader] = {
    "json": schema_grammar,
    "regex": _text("regex"),
    "choice": _choice,
    "grammar": _text("ebnf"),
    "json_object": _json_object,
}
_FIELDS: dict[str, _Reader] = {
    "response_format": _response_format,
    # vLLM's
    "structured_outputs": _structured_outputs,
    "guided_json": schema_grammar,
    "guided_regex": _text("regex"),
    "guided_choice": _choice,
    "guided_grammar": _text("ebnf"),
    "guided_json_object": _json_object,
    # llama.cpp's and SGLang's
    "grammar": _text("ebnf", may_be_empty=True),  # by which llama.cpp's clients mean none
    "json_schema": schema_grammar,
    "regex": _text("regex"),
    "ebnf": _text("ebnf"),
}
GRAMMAR_FIELDS = (*_FIELDS, "guided_whitespace_pattern", "guided_decoding_backend")
