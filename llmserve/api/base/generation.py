"""Generation: prompts in, answers out, as one sequence of events for every endpoint.

An endpoint is a `Reply`, which writes events down in its own shape: streamed event by event, or folded into one body
(`Reply.whole`). `respond` brings both together with disconnects, errors and usage, and is the one way from tokens to
clients:

    class MyReply(Reply):
        def whole(self, answers, usage): ...   # answers[i].output: text, reasoning, calls; .finish_reason
        def write(self, event, usage): ...     # event.choice, .parts, .finish_reason → SSE bytes
        def failure(self, error): ...          # the SSE bytes of an error after the status has been sent

    return await respond(request, serving, MyReply(), [ids], params, stream=body.stream, parser=SomeParser)
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import Request
from starlette.responses import Response

from ...engine import ChoiceDelta, RequestOutput, SamplingParams, TokenLogprob
from ...errors import EngineError, LLMServeError, is_exit
from ...text.parsers.base import OutputParser, ParsedOutput, Part, TextPart, ToolCallBegin, fold_parts
from ...text.tokenizer import Tokenizer
from ..edge.streaming import AsciiJson, EventStream, unless_gone
from .state import Serving

logger = logging.getLogger(__name__)

AnswerFinishReason = Literal["stop", "length", "tool_calls"]
ParserFactory = Callable[[], OutputParser]


@dataclass(slots=True)
class TokenUsage:
    """Tokens of a request so far. Cached ones are among the prompt's, those of reasoning among the completion's."""

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


@dataclass(slots=True)
class Event:
    """News of one choice. Choices are counted over all prompts: prompt × n + choice.

    An event without parts, logprobs and reason (`is_silent`) only keeps the connection alive; else it is left out. A
    choice's last event has its finish reason, and perhaps its last parts. Where a prompt is scored, its choice 0 brings
    the `prompt_logprobs` with its first event, before any other choice's. `token_ids` are there if they were asked for.
    """

    choice: int
    parts: Sequence[Part] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: AnswerFinishReason | None = None
    stop_reason: str | int | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    token_ids: tuple[int, ...] = ()

    @property
    def is_silent(self) -> bool:
        news = self.parts or self.logprobs or self.token_ids
        return not news and self.prompt_logprobs is None and self.finish_reason is None

    @property
    def plain_text(self) -> str | None:
        """The text of an event that has nothing beside it, as most have; None for any other."""
        if len(self.parts) != 1 or self.finish_reason is not None or self.logprobs is not None:
            return None
        part = self.parts[0]
        return part.text if isinstance(part, TextPart) and self.prompt_logprobs is None else None


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice, whole: all of its events, folded. `parts` are those of the stream, in their order.

    `prompt_logprobs` are with the first choice of each prompt.
    """

    output: ParsedOutput
    parts: tuple[Part, ...]
    logprobs: tuple[TokenLogprob, ...] | None
    finish_reason: AnswerFinishReason
    stop_reason: str | int | None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    token_ids: tuple[int, ...] = ()


class Reply(ABC):
    """The shape of one endpoint's answers.

    Attributes:
        wants_token_ids: events are to have their tokens.
        prompts: the tokens of the prompts that are answered; `respond` sets them.
    """

    wants_token_ids = False
    prompts: Sequence[list[int]] = ()

    @abstractmethod
    def whole(self, answers: Sequence[Answer], usage: TokenUsage) -> dict[str, Any]:
        """The body of an answer that is not streamed, from its choices in order."""

    def begin(self, usage: TokenUsage) -> bytes:
        """The server-sent events that stand before those of the first event."""
        return b""

    @abstractmethod
    def write(self, event: Event, usage: TokenUsage) -> bytes:
        """An event as server-sent events, or none. `usage` is of the whole request up to now."""

    def end(self, usage: TokenUsage) -> bytes:
        """The last bytes of a stream that ends well."""
        return b""

    @abstractmethod
    def failure(self, error: Exception) -> bytes:
        """The last bytes of a stream that fails after it has begun."""


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

    Errors that come before the first token, or before the first keep-alive is due, are raised, so they have a status.
    """
    reply.prompts = prompts
    with ExitStack() as left:
        generation = Generation(serving, prompts, params, parser, reply.wants_token_ids)
        left.callback(generation.close)
        if not stream:
            return AsciiJson(reply.whole(*await unless_gone(request.receive, _fold(generation))))
        first = await unless_gone(request.receive, generation.next())
        return EventStream(_written(reply, generation, first), close=left.pop_all().close)


async def _written(reply: Reply, generation: Generation, events: Sequence[Event]) -> AsyncIterator[bytes]:
    """The stream of an answer; `events` are its first. What comes at once is written at once."""
    usage = generation.usage
    try:
        data = [reply.begin(usage)]
        while events:
            data += [reply.write(event, usage) for event in events]
            yield b"".join(data)
            data.clear()
            events = await generation.next()
        yield reply.end(usage)
    except (asyncio.CancelledError, GeneratorExit):
        raise
    except BaseException as error:  # the status has been sent; what is left is to say it in the stream
        if is_exit(error):
            raise
        if not isinstance(error, LLMServeError):
            logger.exception("a stream failed")
        yield reply.failure(error if isinstance(error, Exception) else RuntimeError(str(error)))


async def _fold(generation: Generation) -> tuple[list[Answer], TokenUsage]:
    """The choices of an answer in order, and what it took: the stream, folded."""
    by_choice: dict[int, list[Event]] = {}
    while events := await generation.next():
        for event in events:
            by_choice.setdefault(event.choice, []).append(event)
    return [_answer(by_choice[index]) for index in sorted(by_choice)], generation.usage


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
        tuple(token_id for event in events for token_id in event.token_ids),
    )


class Updates:
    """The engine's news of a request's prompts, timed. To be closed, which aborts what is left.

    Attributes:
        params: those of the request, within the server's limits.
        open_prompts: how many have not ended.
    """

    def __init__(self, serving: Serving, prompts: list[list[int]], params: SamplingParams) -> None:
        self.params = serving.limited(prompts, params)
        self.open_prompts = len(prompts)
        self._stopwatches = [serving.metrics.stopwatch(prompt, self.params) for prompt in prompts]
        self._reader = serving.engine.open(prompts, self.params)
        self.close = self._reader.close

    async def next(self, deadline: float | None = None) -> list[tuple[int, RequestOutput]]:
        """New outputs, each with its prompt's index; none when none has come by `deadline`, in the loop's seconds.

        Raises the first error of any prompt.
        """
        news = await self._reader.get(deadline)
        for prompt, output in news:
            self._stopwatches[prompt].tick(output)
            if output.finished:
                self.open_prompts -= 1
        return news


class Generation:
    """The answers to a request's prompts, as events. To be closed, which aborts what is left.

    Attributes:
        usage: up to the last events taken.
    """

    def __init__(
        self,
        serving: Serving,
        prompts: list[list[int]],
        params: SamplingParams,
        parser: ParserFactory = OutputParser,
        token_ids: bool = False,
    ) -> None:
        """`token_ids` says whether events have them."""
        self._with_token_ids = token_ids
        self.usage = TokenUsage(sum(map(len, prompts)))
        self._updates = Updates(serving, prompts, params)
        self.close = self._updates.close
        self._n = params.n
        self._choices = [
            _ChoiceState(parser, serving.tokenizer, self._updates.params) for _ in range(len(prompts) * self._n)
        ]
        self._cached = [0] * len(prompts)
        self._clock = asyncio.get_running_loop().time
        self._keep_alive_seconds = serving.config.keep_alive_seconds
        self._deadline = self._clock() + self._keep_alive_seconds

    async def next(self) -> list[Event]:
        """The next events, or a silent one when there has been none for a while; none after the last.

        Raises the first error of any prompt.
        """
        updates = self._updates
        while updates.open_prompts:
            news = await updates.next(self._deadline)
            events = [event for prompt, output in news for event in self._events(prompt, output)]
            now = self._clock()
            if not events and now >= self._deadline:
                events = [Event(next(i for i, choice in enumerate(self._choices) if not choice.finished))]
            if events:
                self._deadline = now + self._keep_alive_seconds
                return events
        return []

    def _events(self, prompt: int, output: RequestOutput) -> Iterator[Event]:
        usage = self.usage
        usage.cached_tokens += output.num_cached_tokens - self._cached[prompt]
        self._cached[prompt] = output.num_cached_tokens
        for delta in output.deltas:
            index = prompt * self._n + delta.index
            choice = self._choices[index]
            parts, finish_reason = choice.take(delta)
            usage.completion_tokens += len(delta.token_ids)
            usage.reasoning_tokens += choice.count_reasoning(delta.token_ids)
            token_ids = delta.token_ids if self._with_token_ids else ()
            event = Event(
                index, parts, delta.logprobs, finish_reason, delta.stop_reason, delta.prompt_logprobs, token_ids
            )
            if not event.is_silent:
                yield event


class _ChoiceState:
    """One choice's parser, and what is counted of it."""

    def __init__(self, parser: ParserFactory, tokenizer: Tokenizer, params: SamplingParams) -> None:
        self.finished = False
        self._parser = parser()
        self._has_called = False
        # Text comes late, and of several tokens at once; what is reasoning is counted from the tokens themselves.
        self._counter = parser() if self._parser.may_reason else None
        self._text_stream = (
            tokenizer.stream(params.skip_special_tokens, shown=params.shown_token_ids, continues=True)
            if self._counter
            else None
        )

    def take(self, delta: ChoiceDelta) -> tuple[Sequence[Part], AnswerFinishReason | None]:
        """The new parts, and the finish reason of a choice that has ended. Raises as `raise_if_failed` does."""
        parts = self._parser.feed(delta.text) if delta.text else []
        if delta.finish_reason is not None:
            raise_if_failed(delta)
            self.finished = True
            parts = [*parts, *self._parser.finish()]
        for part in parts:
            self._has_called |= isinstance(part, ToolCallBegin)
        if not self.finished:
            return parts, None
        # If out of tokens, also of calls: the last one's arguments may be incomplete.
        return parts, "length" if delta.finish_reason == "length" else "tool_calls" if self._has_called else "stop"

    def count_reasoning(self, token_ids: Sequence[int]) -> int:
        """The number of the next tokens that are reasoning."""
        count, counter, stream = 0, self._counter, self._text_stream
        if counter is None or stream is None:
            return 0
        for token_id in token_ids:
            if not counter.may_reason:
                break
            before = counter.is_reasoning
            counter.feed(stream.step(token_id))
            count += before or counter.is_reasoning
        return count


def raise_if_failed(delta: ChoiceDelta) -> None:
    """A choice that neither stopped nor ran out of tokens is an error to a client, not an answer. Raises it."""
    if delta.finish_reason == "abort":
        raise EngineError("The request was aborted because the server is shutting down.")
    if delta.finish_reason == "error":
        raise LLMServeError(delta.error or "The model failed on this request.")
