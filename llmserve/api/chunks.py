"""The shape that chat and completions share: chunks with a list of choices, usage last, and [DONE]."""

from __future__ import annotations

import time
import uuid
from abc import abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import Any

from .errors import describe
from .generation import Answer, Event, Reply, Usage
from .state import Serving
from .streaming import DONE, event

Choice = dict[str, Any]


class ChunkReply(Reply):
    """One object whole, or many chunks of it streamed; the two endpoints differ in how a choice is written."""

    prefix: str  # of the id
    object: str
    chunk_object: str

    def __init__(self, serving: Serving, model: str | None, choices: int, include_usage: bool) -> None:
        """`choices` are the choices of all prompts together."""
        self.tokenizer = serving.tokenizer
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self._num_choices = choices
        self._include_usage = include_usage
        self._head = {
            "created": int(time.time()),
            "model": model or serving.model.id,
            "system_fingerprint": serving.fingerprint,
        }

    @abstractmethod
    def opening(self, index: int) -> Choice | None:
        """What begins a streamed choice, before any token."""

    @abstractmethod
    def pieces(self, event: Event) -> list[Choice]:
        """An event of a streamed choice, less why it ended; at least one piece if the event is silent."""

    @abstractmethod
    def ending(self, event: Event) -> Choice:
        """The last word on a streamed choice: why it ended."""

    @abstractmethod
    def choice(self, index: int, answer: Answer) -> Choice:
        """A choice that is not streamed."""

    def whole(self, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]:
        choices = [self.choice(index, answer) for index, answer in enumerate(answers)]
        return {"id": self.id, "object": self.object, **self._head, "choices": choices, "usage": usage.as_openai()}

    async def stream(self, events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
        for index in range(self._num_choices):  # choice 0 first: the clients index by arrival
            if (opening := self.opening(index)) is not None:
                yield self._chunk(opening)
        usage = None
        async for news in events:
            usage = news.usage
            for piece in self.pieces(news):
                yield self._chunk(piece)
            if news.finish_reason is not None:
                yield self._chunk(self.ending(news))
        if self._include_usage and usage is not None:
            yield self._chunk(usage=usage.as_openai())
        yield DONE

    def failure(self, error: Exception) -> bytes:
        status, body, _ = describe(error)
        return event({"error": {**body["error"], "code": body["error"]["code"] or status}}) + DONE

    def _chunk(self, *choices: Choice, **more: Any) -> bytes:
        return event({"id": self.id, "object": self.chunk_object, **self._head, "choices": list(choices), **more})
