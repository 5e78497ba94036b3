"""The grammar of a whole answer: its reasoning, which is free, then calls that must be made, or the format asked for.

`tool_choice` and response_format say what an answer must be; this says it to the engine. Reasoning may come first where
the prompt has begun it or the request asks for it; otherwise the model answers without, since an answer of few tokens
is not to be spent on reasoning. Under `tool_choice` "auto" calls are free, and their arguments are not enforced.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from ...engine import Grammar
from ...errors import RequestError
from ...text.parsers.calls import Function, quoted
from .state import Serving
from .tools import Tools

# Before the answer there is no reasoning, there may be some, or the prompt has begun it.
Thought = Literal["none", "possible", "begun"]

_ANYTHING = "/(?s:.*)/"
_SPACE = r"/[ \t\r\n]{0,8}/"  # bounded, as a model may go on with it for ever


def answer_grammar(serving: Serving, tools: Tools, thought: Thought, wanted: Grammar | None) -> Grammar | None:
    """The grammar of the answer; None if it is free. `wanted` is what the request says of its text.

    Raises RequestError for arguments that cannot be a JSON object.
    """
    must_call = tools.mode == "required"
    may_call = tools.mode == "auto" and wanted is not None and wanted.kind in ("json_schema", "json_object")
    if wanted is None and not must_call:
        return None
    parts: list[Grammar] = []
    rules: list[str] = []
    bodies: list[str] = []
    if must_call or may_call:
        form = serving.tool_call_format
        parts += _arguments(tools.functions)
        rules.append(form.constraint(tools.functions, tools.parallel, lambda text: _marker(serving, text)))
        bodies.append("calls")
    if wanted is not None and not must_call:  # an answer of calls has no text
        bodies.append(f"@part_{len(parts)}")
        parts.append(wanted)
    if wanted is not None and not rules and thought == "none":
        return wanted  # there is nothing beside it
    opening = ""
    if thought != "none" and (tags := serving.reasoning_tags) is not None:
        end = serving.tokenizer.special_among([tags.end])
        if end:
            rules.append(f"thought: {_ANYTHING} <[{end[0]}]> {_SPACE}")
        else:
            rules.append(f"thought: thoughts {_SPACE}\nthoughts[suffix={quoted(tags.end)}]: {_ANYTHING}")
        opening = "thought " if thought == "begun" else f"({_SPACE} {_marker(serving, tags.start)} thought)? "
    rules.insert(0, f"start: {opening}body\nbody: {' | '.join(bodies)}")
    param = "tool_choice" if must_call or wanted is None else wanted.param
    return Grammar("lark", "\n".join(rules), param, tuple(parts))


def _arguments(functions: Sequence[Function]) -> list[Grammar]:
    grammars = []
    for function in functions:
        schema = json.loads(function.schema)
        if schema.setdefault("type", "object") != "object":
            raise RequestError(
                f"The arguments of a function are an object, but the schema of {function.name!r} is of type "
                f"{json.dumps(schema['type'])}.",
                param=function.param,
            )
        grammars.append(Grammar("json_schema", json.dumps(schema), function.param))
    return grammars


def _marker(serving: Serving, text: str) -> str:
    """A marker in a grammar: its token, if it is special and so is no text, or its characters."""
    ids = serving.tokenizer.special_among([text])
    return f"<[{ids[0]}]>" if ids else quoted(text)
