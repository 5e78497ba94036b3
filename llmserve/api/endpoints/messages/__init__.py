"""POST /v1/messages and /v1/messages/count_tokens: chats in Anthropic's shape, with its names for events.

The generation is that of /v1/chat/completions; `request.py` translates requests.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ....text.parsers.base import Part, ReasoningPart, TextPart, ToolCallArguments, ToolCallBegin
from ...base.conversation import answer_chat, prompt_ids
from ...base.generation import Answer, Event, Reply, TokenUsage
from ...base.shapes import STREAMED, AnthropicMessage, CountedTokens
from ...base.state import Serving, ServingDep
from ...base.turns import with_client_names
from ...edge.errors import anthropic_error
from ...edge.route import Route
from ...edge.streaming import named_event, unless_gone
from .request import Block, CountRequest, MessagesRequest

router = APIRouter(route_class=Route)

_NAMES = {
    "response_format.json_schema": "output_config.format",
    "response_format": "output_config.format",
    "stop": "stop_sequences",
}


class MessageReply(Reply):
    """A message of blocks. Streamed, each block has its beginning, its deltas and its end, one after another."""

    def __init__(self, model: str, max_tokens: int) -> None:
        self._max_tokens, self._blocks = max_tokens, _Blocks()
        self._head = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": model}

    def whole(self, answers: Sequence[Answer], usage: TokenUsage) -> dict[str, Any]:
        [its] = answers
        return {**self._head, "content": _folded(its.parts), **self._end(its, usage), "usage": _usage(usage)}

    def begin(self, usage: TokenUsage) -> bytes:
        empty: dict[str, Any] = {**self._head, "content": [], "stop_reason": None, "stop_sequence": None}
        return _event("message_start", message={**empty, "usage": _usage(usage)})

    def write(self, event: Event, usage: TokenUsage) -> bytes:
        if event.is_silent:
            return _event("ping")
        items = [*self._blocks.take(event.parts)]
        if event.finish_reason is not None:
            items += self._blocks.close()
            items.append({"type": "message_delta", "delta": self._end(event, usage), "usage": _usage(usage)})
        return b"".join(_event(**item) for item in items)

    def end(self, usage: TokenUsage) -> bytes:
        return _event("message_stop")

    def failure(self, error: Exception) -> bytes:
        return _event(**anthropic_error(error)[1])

    def _end(self, last: Answer | Event, usage: TokenUsage) -> dict[str, Any]:
        """Why the message ended. Out of tokens before `max_tokens` means out of context."""
        sequence = last.stop_reason if isinstance(last.stop_reason, str) and last.finish_reason == "stop" else None
        if sequence is not None:
            reason = "stop_sequence"
        elif last.finish_reason == "length":
            full = usage.completion_tokens < self._max_tokens
            reason = "model_context_window_exceeded" if full else "max_tokens"
        else:
            reason = "tool_use" if last.finish_reason == "tool_calls" else "end_turn"
        return {"stop_reason": reason, "stop_sequence": sequence}


class _Blocks:
    """Parts to the events of blocks: a new one begins wherever the kind of part changes, or the call."""

    def __init__(self) -> None:
        self._index = -1
        self._open: object = None

    def take(self, parts: Iterable[Part]) -> Iterator[dict[str, Any]]:
        for part in parts:
            kind = part.index if isinstance(part, (ToolCallBegin, ToolCallArguments)) else type(part)
            if kind != self._open:
                yield from self.close()
                self._index, self._open = self._index + 1, kind
                yield {"type": "content_block_start", "index": self._index, "content_block": _opening(part)}
            if delta := _delta(part):
                yield {"type": "content_block_delta", "index": self._index, "delta": delta}

    def close(self) -> Iterator[dict[str, Any]]:
        if self._open is not None:
            self._open = None
            yield {"type": "content_block_stop", "index": self._index}


def _opening(part: Part) -> Block:
    if isinstance(part, TextPart):
        return {"type": "text", "text": ""}
    if isinstance(part, ReasoningPart):
        return {"type": "thinking", "thinking": "", "signature": ""}  # nobody checks where it came from
    assert isinstance(part, ToolCallBegin), "a call begins before its arguments"
    return {"type": "tool_use", "id": part.call_id, "name": part.name, "input": {}}


def _delta(part: Part) -> dict[str, str] | None:
    if isinstance(part, TextPart):
        return {"type": "text_delta", "text": part.text}
    if isinstance(part, ReasoningPart):
        return {"type": "thinking_delta", "thinking": part.text}
    return {"type": "input_json_delta", "partial_json": part.json} if isinstance(part, ToolCallArguments) else None


def _folded(parts: Iterable[Part]) -> list[Block]:
    """The blocks that a stream's events amount to. A call that was cut off is left out: its input is no object."""
    blocks: list[Block] = []
    inputs: dict[int, str] = {}
    for item in _Blocks().take(parts):
        if item["type"] == "content_block_start":
            blocks.append(dict(item["content_block"]))
        elif item["type"] == "content_block_delta":
            index, delta = item["index"], item["delta"]
            if delta["type"] == "input_json_delta":
                inputs[index] = inputs.get(index, "") + delta["partial_json"]
            else:
                name = "text" if delta["type"] == "text_delta" else "thinking"
                blocks[index][name] += delta[name]
    for index, text in inputs.items():
        blocks[index]["input"] = _object(text)
    return [block for block in blocks if block.get("input", {}) is not None]


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _usage(usage: TokenUsage) -> dict[str, Any]:
    """Anthropic counts what was read from the cache apart from the rest of the input."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


def _event(type: str, **fields: Any) -> bytes:
    return named_event(type, {"type": type, **fields})


def _check_model(serving: Serving, name: str | None) -> None:
    """Clients of Anthropic's have its models' names built in; each of them means the model that is served."""
    if name is None or not name.startswith("claude-"):
        serving.check_model(name)


@router.post("/v1/messages", response_model=AnthropicMessage, responses=STREAMED)
async def messages(body: MessagesRequest, request: Request, serving: ServingDep) -> Response:
    """A chat's next message in Anthropic's shape, whole or streamed."""
    _check_model(serving, body.model)
    reply = MessageReply(body.model or serving.model.id, body.max_tokens)
    with with_client_names(_NAMES):
        return await answer_chat(body.as_chat(), request, serving, reply)


@router.post("/v1/messages/count_tokens", response_model=CountedTokens)
async def count_tokens(body: CountRequest, request: Request, serving: ServingDep) -> dict[str, int]:
    """How many tokens a request would have as its prompt."""
    _check_model(serving, body.model)
    chat = body.as_chat()
    ids = await unless_gone(request.receive, serving.in_thread(lambda: prompt_ids(serving, chat)))
    return {"input_tokens": len(ids)}
