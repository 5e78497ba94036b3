"""Bodies of /v1/messages, in Anthropic's shape, and the chats that they become.

One chat request serves all endpoints that chat; here its blocks, tools and choices are translated to OpenAI's. What
only Anthropic's own servers can do (their tools, caching hints) is left out; content that would be lost is refused.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ....errors import RequestError
from ...base.protocol import PASSED_ON, ChatRequest, Items, Messages
from ...base.turns import MessageFields, merged, string_in, text_part

logger = logging.getLogger(__name__)

Block = dict[str, Any]


class Turn(BaseModel):
    """One message: a text, or blocks."""

    model_config = ConfigDict(extra="allow")

    role: Literal["user", "assistant", "system"]
    content: str | Messages[Block]


class CountRequest(BaseModel):
    """The body of POST /v1/messages/count_tokens."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    messages: Messages[Turn]
    system: str | Messages[Block] | None = None
    tools: Items[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None

    def as_chat(self, **more: Any) -> ChatRequest:
        """The same request for /v1/chat/completions."""
        thinks = (self.thinking or {}).get("type", "disabled") != "disabled"
        extra = self.model_extra or {}
        fields: dict[str, Any] = {
            **{name: extra[name] for name in PASSED_ON if name in extra},
            "messages": [*self._system(), *_merged(self.messages)],
            "tools": [_tool(tool) for tool in self.tools or () if _is_ours(tool)] or None,
            "reasoning_effort": (self.output_config or {}).get("effort"),
            "response_format": self._response_format(),
            "chat_template_kwargs": {"enable_thinking": thinks},
            # An answer that has been begun for the model, which then says the rest.
            "continue_final_message": bool(self.messages) and self.messages[-1].role == "assistant",
            **more,
        }
        if fields["tools"] and self.tool_choice is not None:
            fields["tool_choice"] = _tool_choice(self.tool_choice)
            fields["parallel_tool_calls"] = not self.tool_choice.get("disable_parallel_tool_use", False)
        return ChatRequest.of(fields)

    def _system(self) -> list[dict[str, Any]]:
        if not self.system:
            return []
        if isinstance(self.system, str):
            return [{"role": "system", "content": self.system}]
        return [{"role": "system", "content": [_text(block, "system") for block in self.system]}]

    def _response_format(self) -> dict[str, Any] | None:
        wanted = (self.output_config or {}).get("format") or self.output_format
        if wanted is None:
            return None
        if not isinstance(wanted, dict):
            raise RequestError("output_config.format must be an object.", param="output_config.format")
        if wanted.get("type") != "json_schema":
            raise RequestError(f"Output formats of type {wanted.get('type')!r} are not supported, only json_schema.")
        schema = {"name": "output", "schema": wanted.get("schema"), "strict": True}
        return {"type": "json_schema", "json_schema": schema}


class MessagesRequest(CountRequest):
    """The body of POST /v1/messages."""

    max_tokens: int
    stream: bool | None = None
    stop_sequences: Items[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None

    def as_chat(self, **more: Any) -> ChatRequest:
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens must be at least 1, got {self.max_tokens}.", param="max_tokens")
        same = ("max_tokens", "stream", "temperature", "top_p", "top_k")
        return super().as_chat(**{name: getattr(self, name) for name in same}, stop=self.stop_sequences, **more)


def _merged(turns: list[Turn]) -> list[MessageFields]:
    """The turns as a chat's messages; neighbours of one role are one, as Anthropic has it and templates want it."""
    messages = (m for index, turn in enumerate(turns) for m in _messages(turn, f"messages[{index}]"))
    return merged(messages, ("user", "assistant", "system"))


def _messages(turn: Turn, where: str) -> Iterator[MessageFields]:
    """A turn's messages: results of tools are messages of their own, in the order in which they stand."""
    blocks = [text_part(turn.content)] if isinstance(turn.content, str) else turn.content
    if turn.role == "assistant":
        yield _assistant(blocks, where)
        return
    texts: list[Block] = []
    for index, block in enumerate(blocks):
        if block.get("type") == "tool_result" and turn.role == "user":
            if texts:
                yield {"role": "user", "content": texts}
                texts = []
            yield _tool_result(block, f"{where}.content[{index}]")
        else:
            texts.append(_text(block, f"{where}.content[{index}]"))
    if texts:
        yield {"role": turn.role, "content": texts}


def _assistant(blocks: list[Block], where: str) -> MessageFields:
    message: MessageFields = {"role": "assistant", "content": []}
    for index, block in enumerate(blocks):
        match block.get("type"):
            case "tool_use":
                place = f"{where}.content[{index}]"
                arguments = block.get("input") or {}
                if not isinstance(arguments, dict):
                    raise RequestError(f"{place}.input must be an object.")
                function = {"name": string_in(block, "name", place), "arguments": json.dumps(arguments)}
                call = {"id": string_in(block, "id", place), "type": "function", "function": function}
                message.setdefault("tool_calls", []).append(call)
            case "thinking":
                thought = string_in(block, "thinking", f"{where}.content[{index}]")
                message["reasoning_content"] = message.get("reasoning_content", "") + thought
            case "redacted_thinking":
                pass  # encrypted by Anthropic: there is nothing in it that another model could be told
            case _:
                message["content"].append(_text(block, f"{where}.content[{index}]"))
    return message


def _tool_result(block: Block, where: str) -> MessageFields:
    content = block.get("content") or []
    blocks = [text_part(content)] if isinstance(content, str) else content
    if not isinstance(blocks, list):
        raise RequestError(f"{where}: the content of a tool_result must be a string or a list of blocks.")
    parts = [_text(part, f"{where}.content[{index}]") for index, part in enumerate(blocks)]
    call_id = string_in(block, "tool_use_id", where)
    return {"role": "tool", "tool_call_id": call_id, "content": parts or [text_part("")]}


def _text(block: Any, where: str) -> Block:
    """A block of text as a chat's part. A plain text document is a text as well."""
    if isinstance(block, dict):
        source = block.get("source") if block.get("type") == "document" else None
        text = block.get("text") if block.get("type") == "text" else None
        if isinstance(source, dict) and source.get("type") == "text":
            text = source.get("data")
        if isinstance(text, str):
            return text_part(text)
        raise RequestError(f"{where}: blocks of type {block.get('type')!r} are not supported here, only text.")
    raise RequestError(f"{where}: a block must be an object, got {type(block).__name__}.")


def _is_ours(tool: dict[str, Any]) -> bool:
    """Whether the client runs the tool, by its schema. Anthropic's own are not known to other models."""
    ours = tool.get("type") in (None, "custom")
    if not ours:
        logger.debug("skipped a tool of type %s", tool.get("type"))
    return ours


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = {"name": tool.get("name"), "parameters": tool.get("input_schema") or {"type": "object"}}
    if isinstance(tool.get("description"), str):
        function["description"] = tool["description"]
    if isinstance(tool.get("strict"), bool):
        function["strict"] = tool["strict"]
    return {"type": "function", "function": function}


def _tool_choice(choice: dict[str, Any]) -> str | dict[str, Any]:
    kind = choice.get("type")
    if kind == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    plain = {"auto": "auto", "any": "required", "none": "none"}
    if not isinstance(kind, str) or kind not in plain:
        raise RequestError(f"tool_choice of type {kind!r} is unknown; there are auto, any, tool and none.")
    return plain[kind]
