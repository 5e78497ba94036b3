"""The tools of a request: what is offered, what may and must be called, in the terms of chat completions."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...errors import RequestError
from ...text.parsers.calls import Function

MAX_TOOLS = 256
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools that a model is offered.

    Attributes:
        offered: the request's tools, for the chat template.
        functions: those that may be called, a part of the offered ones.
        mode: "none": nothing is called; "auto": as the model likes; "required": something has to be.
        parallel: whether an answer may have more than one call.
    """

    offered: Sequence[Mapping[str, Any]] = ()
    functions: tuple[Function, ...] = ()
    mode: Literal["none", "auto", "required"] = "none"
    parallel: bool = True

    @classmethod
    def of(
        cls,
        tools: Sequence[Mapping[str, Any]] | None,
        choice: str | Mapping[str, Any] | None = None,
        parallel: bool | None = None,
    ) -> Tools:
        """Read `tools`, `tool_choice` and `parallel_tool_calls` as OpenAI has them. Raises RequestError."""
        offered = list(tools or ())
        if len(offered) > MAX_TOOLS:
            raise RequestError(f"At most {MAX_TOOLS} tools can be offered, got {len(offered)}.", param="tools")
        functions: dict[str, Function] = {}
        for index, tool in enumerate(offered):
            function = _function(tool, f"tools[{index}]")
            if function.name in functions:
                raise RequestError(f"There are two tools named {function.name!r}.", param="tools")
            functions[function.name] = function
        mode, names = _choice("auto" if choice is None else choice)
        if not offered and (mode == "required" or names):
            raise RequestError("tool_choice asks for a call, but tools offers nothing to call.", param="tool_choice")
        unknown = [name for name in names or () if name not in functions]
        if unknown:
            known = ", ".join(functions)
            raise RequestError(f"tool_choice names {unknown[0]!r}, but tools has {known} only.", param="tool_choice")
        allowed = tuple(functions[name] for name in (functions if names is None else dict.fromkeys(names)))
        one = isinstance(choice, Mapping) and choice.get("type") == "function"  # who names a function wants it once
        return cls(offered, allowed, mode if offered else "none", parallel is not False and not one)


def _function(tool: Mapping[str, Any], where: str) -> Function:
    kind = tool.get("type", "function")
    if kind != "function":
        raise RequestError(f'Tools of type {kind!r} are not supported, only "function".', param=where)
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise RequestError(f"{where}.function must be an object with the function's name.", param=f"{where}.function")
    name, schema = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RequestError(
            f"{where}.function.name must be 1 to 128 letters, digits and _ - . : characters, got {name!r:.200}.",
            param=f"{where}.function.name",
        )
    if schema is not None and not isinstance(schema, Mapping):
        raise RequestError(
            f"{where}.function.parameters must be a JSON schema, that is, an object.",
            param=f"{where}.function.parameters",
        )
    return Function(name, json.dumps(_NO_ARGUMENTS if schema is None else schema), f"{where}.function.parameters")


def _choice(choice: str | Mapping[str, Any]) -> tuple[Literal["none", "auto", "required"], list[str] | None]:
    """The mode, and the functions that may be called; None is all of them."""
    if choice in ("none", "auto", "required"):
        return choice, None  # type: ignore[return-value]
    if isinstance(choice, Mapping):
        if choice.get("type") == "function" and (name := _named(choice)) is not None:
            return "required", [name]
        if choice.get("type") == "allowed_tools":
            allowed = choice.get("allowed_tools", choice)
            its = allowed.get("tools") if isinstance(allowed, Mapping) else None
            names = [_named(tool) for tool in its] if isinstance(its, list) and its else [None]
            mode = allowed.get("mode", "auto") if isinstance(allowed, Mapping) else None
            if mode in ("auto", "required") and None not in names:
                return mode, [name for name in names if name is not None]
    raise RequestError(
        'tool_choice must be "none", "auto", "required", {"type": "function", "function": {"name": …}} or '
        '{"type": "allowed_tools", "allowed_tools": {"mode": "auto" or "required", "tools": [the same objects]}}.',
        param="tool_choice",
    )


def _named(entry: object) -> str | None:
    """The function's name in a tool or a tool choice; /v1/responses leaves the inner object out."""
    if not isinstance(entry, Mapping):
        return None
    inner = entry.get("function", entry)
    name = inner.get("name") if isinstance(inner, Mapping) else None
    return name if isinstance(name, str) else None
