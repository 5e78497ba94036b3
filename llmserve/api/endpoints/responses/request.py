"""Bodies of POST /v1/responses, and the chats that they become.

A conversation is a list of items here: messages, reasoning, calls and their results. What the model said in one turn is
one message of a chat. Tools that run on OpenAI's servers are skipped; items that they left behind are refused, since
their content would be lost.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ....errors import RequestError
from ...base.protocol import PASSED_ON, ChatRequest, Items, Messages
from ...base.response_store import Item
from ...base.turns import MessageFields, merged, string_in, text_part
from .items import new_id

logger = logging.getLogger(__name__)


_MAX_ITEMS = 4096
_TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text", None)
_UNSUPPORTED = ("background", "conversation", "prompt")
_SAME = ("stream", "temperature", "top_p", "parallel_tool_calls", "user", "metadata", "service_tier")


class ResponsesRequest(BaseModel):
    """The body of POST /v1/responses."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    input: str | Messages[Item] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    include: Items[str] | None = None
    tools: Items[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    service_tier: str | None = None

    def items(self, find: Callable[[str], Item | None]) -> list[Item]:
        """The input as items, each with its type and an id; `find` knows those that are only referred to by theirs.

        Raises RequestError for too many, and for references to what is not there.
        """
        items = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input or []
        if len(items) > _MAX_ITEMS:
            raise RequestError(f"input must hold at most {_MAX_ITEMS} items, not {len(items)}.", param="input")
        return [_named_item(item, find, f"input[{at}]") for at, item in enumerate(items)]

    @property
    def wants_logprobs(self) -> bool:
        return "message.output_text.logprobs" in (self.include or ()) or bool(self.top_logprobs)

    def as_chat(self, items: Iterable[Item]) -> ChatRequest:
        """The same request for /v1/chat/completions; `items` are the conversation up to this request's last one."""
        extra = self.model_extra or {}
        for name in _UNSUPPORTED:
            if extra.get(name):
                raise RequestError(f"{name} is not supported.", param=name, code="unsupported_parameter")
        instructions = [] if self.instructions is None else [{"role": "system", "content": self.instructions}]
        messages = [*instructions, *chat_messages(items)]
        if len(messages) == len(instructions):
            raise RequestError("input must hold at least one item.", param="input")
        tools = [_tool(tool) for tool in self.tools or () if _is_ours(tool)] or None
        fields = {
            **{name: extra[name] for name in PASSED_ON if name in extra},
            **{name: getattr(self, name) for name in _SAME},
            "messages": messages,
            "max_completion_tokens": self.max_output_tokens,
            "logprobs": self.wants_logprobs,
            "top_logprobs": self.top_logprobs,
            "tools": tools,
            "tool_choice": _tool_choice(self.tool_choice) if tools or self.tool_choice != "auto" else None,
            "response_format": _response_format((self.text or {}).get("format")),
            "reasoning_effort": (self.reasoning or {}).get("effort"),
        }
        return ChatRequest.of(fields)


def chat_messages(items: Iterable[Item]) -> list[MessageFields]:
    """The messages of a chat that these items amount to."""
    return merged((_message(item, f"input[{at}]") for at, item in enumerate(items)), ("assistant",))


def _named_item(item: Item, find: Callable[[str], Item | None], where: str) -> Item:
    kind = item.get("type") or ("message" if "role" in item else "item_reference")
    if kind != "item_reference":
        own = item.get("id")
        return {**item, "type": kind, "id": own if isinstance(own, str) and own else new_id("item")}
    found = find(string_in(item, "id", where))
    if found is None:
        raise RequestError(
            f"{where}: there is no item {item.get('id')!r}; items of responses that were not stored, or are no longer, "
            "must be sent whole.",
            param="input",
        )
    return found


def _message(item: Item, where: str) -> MessageFields:
    match item.get("type"):
        case "message":
            return {"role": item.get("role"), "content": list(_parts(item.get("content"), where))}
        case "reasoning":
            thoughts = _parts(item.get("content") or item.get("summary"), where)
            return {"role": "assistant", "reasoning_content": "".join(part["text"] for part in thoughts)}
        case "function_call":
            return _call(item, string_in(item, "arguments", where), where)
        case "custom_tool_call":
            return _call(item, json.dumps({"input": string_in(item, "input", where)}), where)
        case "function_call_output" | "custom_tool_call_output":
            parts = list(_parts(item.get("output"), where)) or [text_part("")]
            return {"role": "tool", "tool_call_id": string_in(item, "call_id", where), "content": parts}
        case other:
            raise RequestError(f"{where}: items of type {other!r} are not supported.", param="input")


def _call(item: Item, arguments: str, where: str) -> MessageFields:
    function = {"name": string_in(item, "name", where), "arguments": arguments}
    call = {"id": string_in(item, "call_id", where), "type": "function", "function": function}
    return {"role": "assistant", "tool_calls": [call]}


def _parts(content: Any, where: str) -> Iterator[dict[str, Any]]:
    if isinstance(content, str):
        yield text_part(content)
        return
    if content is not None and not isinstance(content, list):
        raise RequestError(f"{where}: content must be a string or a list of parts.", param="input")
    for part in content or ():
        if isinstance(part, dict) and part.get("type") in _TEXTS:
            yield text_part(string_in(part, "text", where))
        elif isinstance(part, dict) and part.get("type") == "refusal":
            yield text_part(string_in(part, "refusal", where))
        else:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise RequestError(f"{where}: parts of type {kind!r} are not supported, only text.", param="input")


def _is_ours(tool: dict[str, Any]) -> bool:
    if tool.get("type") == "function":
        return True
    logger.debug("skipped a tool of type %s", tool.get("type"))
    return False


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    names = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: tool[name] for name in names if tool.get(name) is not None}}


def _named(choice: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": choice.get("name")}}


def _tool_choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") == "function":
        return _named(choice)
    if choice.get("type") == "allowed_tools":
        tools = choice.get("tools")
        known = tools if isinstance(tools, list) else []
        named = [_named(t) for t in known if isinstance(t, dict) and t.get("type") == "function"]
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode", "auto"), "tools": named}}
    raise RequestError(f"tool_choice of type {choice.get('type')!r} is not supported.", param="tool_choice")


def _response_format(wanted: Any) -> dict[str, Any] | None:
    if wanted is None:
        return None
    if not isinstance(wanted, dict):
        raise RequestError("text.format must be an object.", param="text.format")
    if wanted.get("type") != "json_schema":
        return wanted
    return {"type": "json_schema", "json_schema": {name: value for name, value in wanted.items() if name != "type"}}
