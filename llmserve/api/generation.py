"""From prompts to answers: the engine's news, told apart by a parser, as one stream of events for every endpoint.

An endpoint is a `Reply`, which writes events down in its own shape: streamed event by event (`Reply.stream`), or folded
into one body (`Reply.whole`). `respond` brings both together with disconnects, errors and usage, and is the one way
from tokens to clients:

    class MyReply(Reply):
        def whole(self, answers, usage): ...   # answers[i].output: text, reasoning, calls; .finish_reason
        async def stream(self, events): ...    # events with .choice, .parts, .finish_reason and .usage → SSE bytes
        def failure(self, error): ...          # the SSE bytes of an error after the status has been sent

    return await respond(request, serving, MyReply(), [ids], params, stream=body.stream, parser=SomeParser)
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Literal

from fastapi import Request
from starlette.responses import Response

from ..engine import ChoiceDelta, RequestOutput, SamplingParams, TokenLogprob
from ..errors import EngineError, LLMServeError
from ..text.parsers.base import OutputParser, ParsedOutput, Part, ToolCallBegin, fold_parts
from ..text.tokenizer import Tokenizer
from .state import Serving
from .streaming import EventStream, Json, unless_gone

logger = logging.getLogger(__name__)

FinishReason = Literal["stop", "length", "tool_calls"]
ParserFactory = Callable[[], OutputParser]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request so far. Cached tokens are among the prompt's, reasoning tokens among the completion's."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    def as_openai(self) -> dict[str, Any]:
        """As the chat and completion endpoints write it."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }


@dataclass(frozen=True, slots=True)
class Event:
    """News of one choice. Choices are counted over all prompts: prompt × n + choice.

    An event without parts, logprobs and reason is a sign of life (`is_silent`), and otherwise left out. A choice's
    last event has its finish reason, and perhaps its last parts. `usage` is of the whole request up to now. Where a
    prompt is scored, its choice 0 brings the `prompt_logprobs` with its first event, before any other choice's.
    """

    choice: int
    usage: Usage
    parts: tuple[Part, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None

    @property
    def is_silent(self) -> bool:
        return not self.parts and not self.logprobs and self.prompt_logprobs is None and self.finish_reason is None


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice, whole: all of its events, folded. `parts` are those of the stream, in their order.

    `prompt_logprobs` are with the first choice of each prompt.
    """

    output: ParsedOutput
    parts: tuple[Part, ...]
    logprobs: tuple[TokenLogprob, ...] | None
    finish_reason: FinishReason
    stop_reason: str | int | None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None


class Reply(ABC):
    """How one endpoint writes its answers down."""

    @abstractmethod
    def whole(self, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]:
        """The body of an answer that is not streamed, from its choices in order."""

    @abstractmethod
    def stream(self, events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
        """The server-sent events of an answer, complete with whatever ends it well."""

    @abstractmethod
    def failure(self, error: Exception) -> bytes:
        """What a stream ends with when it fails after it has begun."""


async def respond(
    request: Request,
    serving: Serving,
    reply: Reply,
    prompts: list[list[int]],
    params: SamplingParams,
    *,
    stream: bool,
    parser: ParserFactory = OutputParser,
) -> Response:
    """Generate for every prompt and answer. A client that goes away takes its generation with it.

    Errors that come before the first token, or before the first sign of life is due, are raised, so they have a status.
    """
    news = generate(serving, prompts, params, parser)
    if not stream:
        return Json(await unless_gone(request.receive, _whole(news, reply)))
    first = await unless_gone(request.receive, anext(news))
    return EventStream(_guarded(reply, _resumed(first, news)), close=news.aclose)


async def generate(
    serving: Serving, prompts: list[list[int]], params: SamplingParams, parser: ParserFactory = OutputParser
) -> AsyncGenerator[Event, None]:
    """The events of all prompts as they come, with a silent one when there has been none for a while.

    Closing it aborts what is left. Raises the first error of any prompt.
    """
    choices = [_Choice(parser, serving.tokenizer, params) for _ in range(len(prompts) * params.n)]
    usage = Usage(sum(map(len, prompts)))
    cached = [0] * len(prompts)
    said = time.monotonic()
    async with aclosing(updates(serving, prompts, params)) as news:
        async for update in news:
            if update is None:
                yield Event(next(i for i, c in enumerate(choices) if not c.finished), usage)
                said = time.monotonic()
                continue
            newly_cached = update.output.num_cached_tokens - cached[update.prompt]
            cached[update.prompt] += newly_cached
            usage = replace(usage, cached_tokens=usage.cached_tokens + newly_cached)
            for delta in update.output.deltas:
                index = update.prompt * params.n + delta.index
                parts, finish_reason = choices[index].take(delta)
                usage = replace(
                    usage,
                    completion_tokens=usage.completion_tokens + len(delta.token_ids),
                    reasoning_tokens=usage.reasoning_tokens + choices[index].count_reasoning(delta.token_ids),
                )
                event = Event(
                    index, usage, parts, delta.logprobs, finish_reason, delta.stop_reason, delta.prompt_logprobs
                )
                if not event.is_silent or time.monotonic() - said >= serving.config.keep_alive_seconds:
                    yield event
                    said = time.monotonic()


class _Choice:
    """One choice's parser, and what is counted of it."""

    def __init__(self, parser: ParserFactory, tokenizer: Tokenizer, params: SamplingParams) -> None:
        self.finished = False
        self._parser = parser()
        self._called = False
        # Text comes late, and of several tokens at once; what is reasoning is counted from the tokens themselves.
        self._counter = parser() if self._parser.may_reason else None
        self._words = (
            tokenizer.stream(params.skip_special_tokens, shown=params.shown_token_ids, continues=True)
            if self._counter
            else None
        )

    def take(self, delta: ChoiceDelta) -> tuple[tuple[Part, ...], FinishReason | None]:
        parts = self._parser.feed(delta.text) if delta.text else []
        self.finished = delta.finish_reason is not None
        if self.finished:
            parts = [*parts, *self._parser.finish()]
        self._called = self._called or any(isinstance(part, ToolCallBegin) for part in parts)
        if delta.finish_reason == "length":
            return tuple(parts), "length"  # also of calls: the last one's arguments may be incomplete
        return tuple(parts), ("tool_calls" if self._called else "stop") if self.finished else None

    def count_reasoning(self, token_ids: Sequence[int]) -> int:
        """How many of the next tokens are reasoning."""
        count, counter, words = 0, self._counter, self._words
        if counter is None or words is None:
            return 0
        for token_id in token_ids:
            if not counter.may_reason:
                break
            before = counter.is_reasoning
            counter.feed(words.step(token_id))
            count += before or counter.is_reasoning
        return count


async def fold_events(events: AsyncIterator[Event]) -> tuple[list[Answer], Usage]:
    """The choices of an answer in order, and what it took: the stream, folded."""
    by_choice: dict[int, list[Event]] = {}
    usage = Usage(0)
    async for event in events:
        usage = event.usage
        by_choice.setdefault(event.choice, []).append(event)
    return [_answer(by_choice[index]) for index in sorted(by_choice)], usage


def _answer(events: list[Event]) -> Answer:
    last = events[-1]
    assert last.finish_reason is not None, "a choice's last event says why it ended"
    asked = any(event.logprobs is not None for event in events)
    parts = tuple(part for event in events for part in event.parts)
    return Answer(
        fold_parts(parts),
        parts,
        tuple(p for event in events for p in event.logprobs or ()) if asked else None,
        last.finish_reason,
        last.stop_reason,
        events[0].prompt_logprobs,
    )


async def _whole(news: AsyncGenerator[Event, None], reply: Reply) -> dict[str, Any]:
    async with aclosing(news):
        return reply.whole(*await fold_events(news))


async def _resumed(first: Event, news: AsyncIterator[Event]) -> AsyncIterator[Event]:
    yield first
    async for event in news:
        yield event


async def _guarded(reply: Reply, events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
    try:
        async for data in reply.stream(events):
            yield data
    except Exception as error:  # the status has been sent; what is left is to say it in the stream
        if not isinstance(error, LLMServeError):
            logger.exception("a stream failed")
        yield reply.failure(error)


@dataclass(frozen=True, slots=True)
class Update:
    """The engine's news of one of a request's prompts."""

    prompt: int
    output: RequestOutput


async def updates(
    serving: Serving, prompts: list[list[int]], params: SamplingParams
) -> AsyncGenerator[Update | None, None]:
    """The engine's news of all prompts as it comes; None when there has been none for a while.

    Closing it aborts what is left. Raises the first error of any prompt.
    """
    params = serving.limited(prompts, params)
    # As short as may be: a slow reader's outputs are joined in the engine, not heaped up here.
    queue: asyncio.Queue[Update | Exception] = asyncio.Queue(maxsize=len(prompts))

    async def pump(prompt: int) -> None:
        try:
            stopwatch = serving.metrics.stopwatch(prompts[prompt], params)
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
