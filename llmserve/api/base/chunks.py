"""Chunked replies, as chat and completions share them: chunks with a list of choices, usage last, and [DONE]."""

from __future__ import annotations

import json
import time
import uuid
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from ..edge.errors import describe
from ..edge.streaming import DONE, event
from .generation import Answer, Event, Reply, TokenUsage
from .state import Serving

Choice = dict[str, Any]
_PLACEHOLDER = "\0"  # stands for the text in a chunk that is made in advance


class ChunkReply(Reply):
    """One object whole, or many chunks of it streamed; the two endpoints differ in how a choice is written."""

    prefix: str  # of the id
    object: str
    chunk_object: str
    is_plain = True  # `pieces` makes of an event's plain text what `text_choice` does

    def __init__(self, serving: Serving, model: str | None, choices: int, include_usage: bool) -> None:
        """`choices` are the choices of all prompts together."""
        self.tokenizer = serving.tokenizer
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self._num_choices = choices
        self._include_usage = include_usage
        self._frames: dict[int, tuple[bytes, bytes]] = {}  # by choice: what stands around its text in a chunk
        self._head = {
            "created": int(time.time()),
            "model": model or serving.model.id,
            "system_fingerprint": serving.fingerprint,
        }

    @abstractmethod
    def opening(self, index: int) -> Choice | None:
        """The beginning of a streamed choice, before any token."""

    @abstractmethod
    def text_choice(self, index: int, text: str) -> Choice:
        """A streamed choice's next text, with nothing beside it."""

    @abstractmethod
    def pieces(self, event: Event) -> list[Choice]:
        """An event of a streamed choice, less why it ended; at least one piece if the event is silent."""

    @abstractmethod
    def ending(self, event: Event) -> Choice:
        """The last word on a streamed choice: why it ended."""

    @abstractmethod
    def choice(self, index: int, answer: Answer) -> Choice:
        """A choice that is not streamed."""

    def whole(self, answers: Sequence[Answer], usage: TokenUsage) -> dict[str, Any]:
        choices = [self.choice(index, answer) for index, answer in enumerate(answers)]
        return {"id": self.id, "object": self.object, **self._head, "choices": choices, "usage": usage.as_openai()}

    def begin(self, usage: TokenUsage) -> bytes:
        openings = map(self.opening, range(self._num_choices))  # choice 0 first: the clients index by arrival
        return b"".join(self._chunk(opening) for opening in openings if opening is not None)

    def write(self, event: Event, usage: TokenUsage) -> bytes:
        if (text := event.plain_text) is not None and self.is_plain:
            before, after = self._frames.get(event.choice) or self._frame(event.choice)
            return before + json.dumps(text).encode() + after
        choices = self.pieces(event)
        if event.finish_reason is not None:
            choices.append(self.ending(event))
        return b"".join(map(self._chunk, choices))

    def end(self, usage: TokenUsage) -> bytes:
        return self._chunk(usage=usage.as_openai()) + DONE if self._include_usage else DONE

    def failure(self, error: Exception) -> bytes:
        status, body, _ = describe(error)
        return event({"error": {**body["error"], "code": body["error"]["code"] or status}}) + DONE

    def _chunk(self, *choices: Choice, **more: Any) -> bytes:
        return event({"id": self.id, "object": self.chunk_object, **self._head, "choices": list(choices), **more})

    def _frame(self, index: int) -> tuple[bytes, bytes]:
        """Nearly all chunks of a choice differ in their text alone, so the rest is written once."""
        chunk = self._chunk(self.text_choice(index, _PLACEHOLDER))
        before, _, after = chunk.rpartition(json.dumps(_PLACEHOLDER).encode())
        self._frames[index] = before, after
        return before, after
