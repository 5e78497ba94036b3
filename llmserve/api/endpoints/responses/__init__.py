"""/v1/responses: chats as OpenAI's newer clients have them, whole or as a sequence of named events.

The generation is that of /v1/chat/completions; `request.py` translates requests, `items.py` answers, and
`base/response_store.py` keeps what later requests may go on from.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ....errors import ContextLengthError
from ...base.conversation import answer_chat, prompt_ids
from ...base.generation import Answer, AnswerFinishReason, Event, Reply, TokenUsage
from ...base.logprobs import chat_logprobs
from ...base.protocol import ChatRequest
from ...base.response_store import Item
from ...base.shapes import STREAMED, InputTokens, ResponseDeleted, ResponseItems, ResponseObject
from ...base.state import Serving, ServingDep
from ...base.turns import with_client_names
from ...edge.errors import describe
from ...edge.route import Route
from ...edge.streaming import named_event, unless_gone
from .items import OutputItems, new_id
from .request import ResponsesRequest

router = APIRouter(route_class=Route)

_NAMES = {
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
}


class ResponseReply(Reply):
    """A response and its events, which are numbered from 0."""

    def __init__(self, serving: Serving, body: ResponsesRequest, keep: Callable[[dict[str, Any]], None]) -> None:
        """`keep` gets a response that has ended well, before the client does."""
        self._tokenizer, self._keep = serving.tokenizer, keep
        self._items = OutputItems(summarize=(body.reasoning or {}).get("summary") is not None)
        self._head = _head(serving, body)
        self._number = 0
        self._pending: list[dict[str, Any]] = []  # log-probabilities of tokens that have shown nothing yet

    def whole(self, answers: Sequence[Answer], usage: TokenUsage) -> dict[str, Any]:
        [its] = answers
        for _ in self._items.take(its.parts, self._logprobs(its)):
            pass
        for _ in self._items.close(_status(its.finish_reason)):
            pass
        return self._ended(its.finish_reason, usage)

    def begin(self, usage: TokenUsage) -> bytes:
        started = self._snapshot("in_progress")
        return self._lifecycle("created", started) + self._lifecycle("in_progress", started)

    def write(self, event: Event, usage: TokenUsage) -> bytes:
        if event.is_silent:
            return self._lifecycle("in_progress", self._snapshot("in_progress"))
        self._pending += self._logprobs(event)
        items = [*self._items.take(event.parts, self._pending)]
        if event.parts:
            self._pending = []
        if event.finish_reason is None:
            return b"".join(map(self._event, items))
        items += self._items.close(_status(event.finish_reason))
        ended = self._ended(event.finish_reason, usage)
        return b"".join(map(self._event, items)) + self._lifecycle(_status(event.finish_reason), ended)

    def failure(self, error: Exception) -> bytes:
        status, body, _ = describe(error)
        told = body["error"]
        code = "rate_limit_exceeded" if status == 429 else "server_error" if status >= 500 else "invalid_prompt"
        failed = {**self._snapshot("failed"), "error": {"code": code, "message": told["message"]}}
        # Those who only read on see an exception at the second: the client makes one of any event with an "error".
        last = {"type": "error", "code": told["code"], "message": told["message"], "param": told["param"]}
        return self._lifecycle("failed", failed) + self._event({**last, "error": told})

    def _ended(self, reason: AnswerFinishReason, usage: TokenUsage) -> dict[str, Any]:
        status = _status(reason)
        incomplete = {"reason": "max_output_tokens"} if status == "incomplete" else None
        response = {**self._snapshot(status), "incomplete_details": incomplete, "usage": _usage(usage)}
        response |= {"output": self._items.output, "completed_at": None if incomplete else int(time.time())}
        self._keep(response)
        return response

    def _snapshot(self, status: str) -> dict[str, Any]:
        return {**self._head, "status": status}

    def _lifecycle(self, name: str, response: dict[str, Any]) -> bytes:
        return self._event({"type": f"response.{name}", "response": response})

    def _event(self, fields: dict[str, Any]) -> bytes:
        numbered = {**fields, "sequence_number": self._number}
        self._number += 1
        return named_event(fields["type"], numbered)

    def _logprobs(self, its: Answer | Event) -> list[dict[str, Any]]:
        written = chat_logprobs(self._tokenizer, its.logprobs)
        return [] if written is None else list(written["content"])


def _status(reason: AnswerFinishReason) -> str:
    return "incomplete" if reason == "length" else "completed"


def _usage(usage: TokenUsage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _head(serving: Serving, body: ResponsesRequest) -> dict[str, Any]:
    """The fields that a response has from the beginning: the request's settings, defaults in place of missing ones."""
    defaults = serving.model.sampling_defaults
    reasoning = body.reasoning or {}
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "completed_at": None,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata or {},
        "model": body.model or serving.model.id,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": defaults.get("temperature", 1.0) if body.temperature is None else body.temperature,
        "text": {"format": {"type": "text"}, **(body.text or {})},
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": defaults.get("top_p", 1.0) if body.top_p is None else body.top_p,
        "truncation": body.truncation or "disabled",
        "usage": None,
        "user": body.user,
    }


async def _chat(request: Request, serving: Serving, body: ResponsesRequest, items: list[Item]) -> ChatRequest:
    """The conversation as a chat: all of it, or with `truncation` "auto" as much of its end as leaves room."""
    known = [*serving.responses.conversation(body.previous_response_id), *items]
    if body.truncation == "auto":
        known = await unless_gone(request.receive, serving.in_thread(lambda: _fitting(serving, body, known)))
    return body.as_chat(known)


def _fitting(serving: Serving, body: ResponsesRequest, items: list[Item]) -> list[Item]:
    """Items less the oldest turns, each of which begins with the user's message; system messages stay."""
    context = serving.model.max_model_len
    wanted = body.max_output_tokens or 0
    room = context - min(wanted if wanted > 0 else context // 4, context // 2)
    starts = [0, *(at for at, item in enumerate(items) if at and item.get("role") == "user")]

    def end(start: int) -> list[Item]:
        return [*(item for item in items[:start] if item.get("role") in ("system", "developer")), *items[start:]]

    def fits(start: int) -> bool:
        try:
            return len(prompt_ids(serving, body.as_chat(end(start)))) <= room
        except ContextLengthError:  # by its bytes alone
            return False

    first = bisect_left(starts, True, key=fits)
    return end(starts[min(first, len(starts) - 1)])  # a last turn that is too long by itself is refused as any is


@router.post("/v1/responses", response_model=ResponseObject, responses=STREAMED)
async def create_response(body: ResponsesRequest, request: Request, serving: ServingDep) -> Response:
    """The next items of a conversation, whole or streamed."""
    serving.check_model(body.model)
    store = serving.responses
    items = body.items(store.item)

    def keep(response: dict[str, Any]) -> None:
        if body.store is not False:
            store.put(response, items)

    with with_client_names(_NAMES):
        chat = await _chat(request, serving, body, items)
        return await answer_chat(chat, request, serving, ResponseReply(serving, body, keep), "input")


@router.post("/v1/responses/input_tokens", response_model=InputTokens)
async def count_input_tokens(body: ResponsesRequest, request: Request, serving: ServingDep) -> dict[str, Any]:
    """How many tokens a request would have as its prompt."""
    serving.check_model(body.model)
    with with_client_names(_NAMES):
        chat = await _chat(request, serving, body, body.items(serving.responses.item))
        ids = await unless_gone(request.receive, serving.in_thread(lambda: prompt_ids(serving, chat, "input")))
    return {"object": "response.input_tokens", "input_tokens": len(ids)}


@router.get("/v1/responses/{response_id}", response_model=ResponseObject)
async def stored_response(response_id: str, serving: ServingDep) -> dict[str, Any]:
    """A response that was stored."""
    return serving.responses.get(response_id).body


@router.get("/v1/responses/{response_id}/input_items", response_model=ResponseItems)
async def input_items(response_id: str, serving: ServingDep) -> dict[str, Any]:
    """The items that a stored response answered, the last one first."""
    items: list[Item] = list(reversed(serving.responses.get(response_id).items))
    ends = {"first_id": items[0]["id"] if items else None, "last_id": items[-1]["id"] if items else None}
    return {"object": "list", "data": items, **ends, "has_more": False}


@router.delete("/v1/responses/{response_id}", response_model=ResponseDeleted)
async def forget_response(response_id: str, serving: ServingDep) -> dict[str, Any]:
    """Forget a stored response. Conversations that went on from it cannot go on any more."""
    serving.responses.delete(response_id)
    return {"id": response_id, "object": "response", "deleted": True}
