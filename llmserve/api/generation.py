"""From prompts to answers: one stream of the engine's news, sent piece by piece or folded into one body.

Both endpoint families go through `respond`; they differ in a `Reply`, the shape in which news is written down.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.responses import Response

from ..engine import ChoiceDelta, RequestOutput, SamplingParams, fold
from ..errors import EngineError, LLMServeError
from .errors import describe
from .state import Serving
from .streaming import DONE, EventStream, Json, event, unless_gone

logger = logging.getLogger(__name__)

Choice = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Update:
    """The engine's news of one of a request's prompts."""

    prompt: int
    output: RequestOutput


class Reply(ABC):
    """How one endpoint writes its answers. Choices are counted over all prompts: prompt × n + choice."""

    prefix: str  # of the id
    object: str
    chunk_object: str

    def __init__(self, serving: Serving, model: str | None) -> None:
        self.tokenizer = serving.tokenizer
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self._head = {
            "created": int(time.time()),
            "model": model or serving.model.id,
            "system_fingerprint": serving.fingerprint,
        }

    def body(self, choices: list[Choice], **more: Any) -> dict[str, Any]:
        return {"id": self.id, "object": self.object, **self._head, "choices": choices, **more}

    def chunk(self, *choices: Choice, **more: Any) -> dict[str, Any]:
        return {"id": self.id, "object": self.chunk_object, **self._head, "choices": list(choices), **more}

    @abstractmethod
    def opening(self, index: int) -> Choice | None:
        """What begins a streamed choice, before any token."""

    @abstractmethod
    def piece(self, index: int, delta: ChoiceDelta) -> Choice:
        """New text of a streamed choice, or none at all: a sign of life."""

    @abstractmethod
    def ending(self, index: int, delta: ChoiceDelta) -> Choice:
        """The last word on a streamed choice: why it ended."""

    @abstractmethod
    def whole(self, index: int, delta: ChoiceDelta) -> Choice:
        """A choice that is not streamed."""


class Tally:
    """Counts tokens for the usage report."""

    def __init__(self, prompts: Sequence[Sequence[int]]) -> None:
        self._prompt_tokens = sum(map(len, prompts))
        self._cached = [0] * len(prompts)
        self._completion_tokens = 0

    def add(self, update: Update) -> None:
        self._cached[update.prompt] = update.output.num_cached_tokens
        self._completion_tokens += sum(len(delta.token_ids) for delta in update.output.deltas)

    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "total_tokens": self._prompt_tokens + self._completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(self._cached)},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }


async def respond(
    request: Request,
    serving: Serving,
    reply: Reply,
    prompts: list[list[int]],
    params: SamplingParams,
    *,
    stream: bool,
    include_usage: bool,
) -> Response:
    """Generate for every prompt and answer. A client that goes away takes its generation with it.

    Errors that come before the first token, or before the first sign of life is due, are raised, so they have a status.
    """
    news = updates(serving, prompts, params)
    tally = Tally(prompts)
    if not stream:
        return Json(await unless_gone(request.receive, _collected(news, reply, tally, params.n)))
    first = await unless_gone(request.receive, anext(news))
    chunks = _chunks(_resumed(first, news), reply, tally, len(prompts) * params.n, params.n, include_usage)
    return EventStream(_events(chunks), close=news.aclose)


async def updates(
    serving: Serving, prompts: list[list[int]], params: SamplingParams
) -> AsyncGenerator[Update | None, None]:
    """The engine's news of all prompts as it comes; None when there has been none for a while.

    Closing it aborts what is left. Raises the first error of any prompt.
    """
    # As short as may be: a slow reader's outputs are joined in the engine, not heaped up here.
    queue: asyncio.Queue[Update | Exception] = asyncio.Queue(maxsize=len(prompts))

    async def pump(prompt: int) -> None:
        try:
            stopwatch = serving.metrics.stopwatch()
            async with aclosing(serving.engine.generate(prompts[prompt], params)) as outputs:
                async for output in outputs:
                    stopwatch.tick(output)
                    await queue.put(Update(prompt, output))
        except Exception as error:
            await queue.put(error)

    pumps = [asyncio.create_task(pump(i)) for i in range(len(prompts))]
    getting = asyncio.create_task(queue.get())
    try:
        open_prompts = len(prompts)
        while open_prompts:
            await asyncio.wait({getting}, timeout=serving.config.keep_alive_seconds)
            if not getting.done():
                yield None
                continue
            item = getting.result()
            getting = asyncio.create_task(queue.get())
            if isinstance(item, Exception):
                raise item
            _check_honest(item.output)
            open_prompts -= item.output.finished
            yield item
    finally:
        for task in (*pumps, getting):
            task.cancel()
        await asyncio.gather(*pumps, getting, return_exceptions=True)


def _check_honest(output: RequestOutput) -> None:
    """A choice that neither stopped nor ran out of tokens is an error to a client, not an answer."""
    for delta in output.deltas:
        if delta.finish_reason == "abort":
            raise EngineError("The request was aborted because the server is shutting down.")
        if delta.finish_reason == "error":
            raise LLMServeError(delta.error or "The model failed on this request.")


async def _resumed(first: Update | None, news: AsyncGenerator[Update | None, None]) -> AsyncIterator[Update | None]:
    yield first
    async for update in news:
        yield update


async def _collected(news: AsyncGenerator[Update | None, None], reply: Reply, tally: Tally, n: int) -> dict[str, Any]:
    """The body of an answer that is not streamed: the stream, folded."""
    outputs: dict[int, list[RequestOutput]] = {}
    async with aclosing(news):
        async for update in news:
            if update is not None:
                tally.add(update)
                outputs.setdefault(update.prompt, []).append(update.output)
    deltas = {prompt * n + delta.index: delta for prompt, its in outputs.items() for delta in fold(its).deltas}
    return reply.body([reply.whole(index, deltas[index]) for index in sorted(deltas)], usage=tally.usage())


async def _chunks(
    news: AsyncIterator[Update | None], reply: Reply, tally: Tally, choices: int, n: int, include_usage: bool
) -> AsyncIterator[dict[str, Any]]:
    """The chunks of a streamed answer, the opening of choice 0 first: the clients index by arrival."""
    unfinished = set(range(choices))
    for index in range(choices):
        opening = reply.opening(index)
        if opening is not None:
            yield reply.chunk(opening)
    async for update in news:
        if update is None:
            yield reply.chunk(reply.piece(min(unfinished), ChoiceDelta(0, (), "")))
            continue
        tally.add(update)
        for delta in update.output.deltas:
            index = update.prompt * n + delta.index
            if delta.text or delta.logprobs:
                yield reply.chunk(reply.piece(index, delta))
            if delta.finish_reason is not None:
                unfinished.discard(index)
                yield reply.chunk(reply.ending(index, delta))
    if include_usage:
        yield reply.chunk(usage=tally.usage())


async def _events(chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    try:
        async for chunk in chunks:
            yield event(chunk)
    except Exception as error:  # the status has been sent; what is left is to say it in the stream
        status, body, _ = describe(error)
        if not isinstance(error, LLMServeError):
            logger.exception("a stream failed")
        yield event({"error": {**body["error"], "code": body["error"]["code"] or status}})
    yield DONE
