"""POST /v1/chat/completions: a chat in OpenAI's first shape, whole or as chunks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ...text.parsers.base import ParsedOutput, Part, ReasoningPart, TextPart, ToolCallArguments, ToolCallBegin
from ..base.chunks import Choice, ChunkReply
from ..base.conversation import answer_chat
from ..base.generation import Answer, Event, TokenUsage
from ..base.logprobs import chat_logprobs
from ..base.protocol import ChatRequest
from ..base.shapes import STREAMED, ChatCompletion
from ..base.state import ServingDep
from ..edge.route import Route

router = APIRouter(route_class=Route)


class ChatReply(ChunkReply):
    """Messages and their deltas. The role stands in a choice's first delta, the finish reason beside its empty last."""

    prefix = "chatcmpl"
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def whole(self, answers: Sequence[Answer], usage: TokenUsage) -> dict[str, Any]:
        return {**super().whole(answers, usage), **self._prompt()}

    def begin(self, usage: TokenUsage) -> bytes:
        beside, self._beside = self._beside, {**self._beside, **self._prompt()}
        chunks = super().begin(usage)
        self._beside = beside
        return chunks

    def _prompt(self) -> dict[str, Any]:
        return {"prompt_token_ids": self.prompts[0]} if self.wants_token_ids else {}

    def opening(self, index: int) -> Choice:
        return _delta(index, {"role": "assistant", "content": ""})

    def text_choice(self, index: int, text: str) -> Choice:
        return _delta(index, {"content": text})

    def pieces(self, event: Event) -> list[Choice]:
        deltas = [_joined(list(its)) for _, its in groupby(event.parts, _kind)]
        if not deltas and event.finish_reason is None:
            deltas = [{"content": ""} if event.logprobs or event.token_ids else {}]
        choices = [_delta(event.choice, delta) for delta in deltas]
        if choices:
            choices[0]["logprobs"] = chat_logprobs(self.tokenizer, event.logprobs)
        return choices

    def ending(self, event: Event) -> Choice:
        choice = _delta(event.choice, {})
        if not event.parts:
            choice["logprobs"] = chat_logprobs(self.tokenizer, event.logprobs)
        return {**choice, "finish_reason": event.finish_reason, "stop_reason": event.stop_reason}

    def choice(self, index: int, answer: Answer) -> Choice:
        return {
            "index": index,
            "message": _message(answer.output),
            "logprobs": chat_logprobs(self.tokenizer, answer.logprobs),
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
        }


def _delta(index: int, delta: dict[str, Any]) -> Choice:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _kind(part: Part) -> object:
    """The kind of a part; parts of one kind share a delta: text, reasoning, or pieces of one call."""
    return part.index if isinstance(part, (ToolCallBegin, ToolCallArguments)) else type(part)


def _joined(parts: list[Part]) -> dict[str, Any]:
    """Parts of one kind as a delta. A call's id and name stand in its first piece only: clients join strings."""
    output = "".join(p.text for p in parts if isinstance(p, (TextPart, ReasoningPart)))
    if isinstance(parts[0], TextPart):
        return {"content": output}
    if isinstance(parts[0], ReasoningPart):
        return _reasoning(output)
    first = parts[0]
    call: dict[str, Any] = {"index": first.index}
    if isinstance(first, ToolCallBegin):
        call |= {"id": first.call_id, "type": "function"}
    arguments = "".join(p.json for p in parts if isinstance(p, ToolCallArguments))
    name = {"name": first.name} if isinstance(first, ToolCallBegin) else {}
    return {"tool_calls": [{**call, "function": {**name, "arguments": arguments}}]}


def _message(output: ParsedOutput) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": output.text, "refusal": None}
    if output.reasoning:
        message |= _reasoning(output.reasoning)
    if output.calls:
        message["content"] = output.text or None
        message["tool_calls"] = [
            {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in output.calls
        ]
    return message


def _reasoning(text: str) -> dict[str, str]:
    """Under both names that clients look for."""
    return {"reasoning_content": text, "reasoning": text}


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAMED)
async def chat_completions(body: ChatRequest, request: Request, serving: ServingDep) -> Response:
    """A chat's next message, whole or streamed."""
    serving.check_model(body.model)
    return await answer_chat(body, request, serving, ChatReply(serving, body, body.n or 1))
