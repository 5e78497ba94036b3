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
from .protocol import Generating
from .state import Serving

Choice = dict[str, Any]
_PLACEHOLDER = "\0"  # stands for the text in a chunk that is made in advance


class ChunkReply(Reply):
    """One object whole, or many chunks of it streamed; the two endpoints differ in how a choice is written."""

    prefix: str  # of the id
    object: str
    chunk_object: str
    is_plain = True  # `pieces` makes of an event's plain text what `text_choice` does

    def __init__(self, serving: Serving, body: Generating, choices: int) -> None:
        """`choices` are the choices of all prompts together."""
        self.tokenizer = serving.tokenizer
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self._num_choices = choices
        options = body.stream_options
        self._include_usage = bool(options and options.include_usage)
        self._counts = self._include_usage and bool(options and options.continuous_usage_stats)
        self._beside: dict[str, Any] = {"usage": None} if self._include_usage else {}  # in all chunks but the last
        self.wants_token_ids = bool(body.return_token_ids)
        if self._counts or self.wants_token_ids:
            self.is_plain = False
        self._frames: dict[int, tuple[bytes, bytes]] = {}  # by choice: what stands around its text in a chunk
        self._head = {
            "created": int(time.time()),
            "model": body.model or serving.model.id,
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
        choices = [self._with_ids(self.choice(index, answer), answer) for index, answer in enumerate(answers)]
        return {"id": self.id, "object": self.object, **self._head, "choices": choices, "usage": usage.as_openai()}

    def begin(self, usage: TokenUsage) -> bytes:
        if self._counts:
            self._beside = {"usage": usage.as_openai()}
        openings = map(self.opening, range(self._num_choices))  # choice 0 first: the clients index by arrival
        return b"".join(self._chunk(opening) for opening in openings if opening is not None)

    def write(self, event: Event, usage: TokenUsage) -> bytes:
        if (text := event.plain_text) is not None and self.is_plain:
            before, after = self._frames.get(event.choice) or self._frame(event.choice)
            return before + json.dumps(text).encode() + after
        if self._counts:
            self._beside = {"usage": usage.as_openai()}
        choices = self.pieces(event)
        if event.finish_reason is not None:
            choices.append(self.ending(event))
        if event.token_ids:
            self._with_ids(choices[0], event)
        return b"".join(map(self._chunk, choices))

    def end(self, usage: TokenUsage) -> bytes:
        self._beside = {}
        return self._chunk(usage=usage.as_openai()) + DONE if self._include_usage else DONE

    def failure(self, error: Exception) -> bytes:
        status, body, _ = describe(error)
        return event({"error": {**body["error"], "code": body["error"]["code"] or status}}) + DONE

    def _chunk(self, *choices: Choice, **more: Any) -> bytes:
        return event(
            {"id": self.id, "object": self.chunk_object, **self._head, "choices": list(choices), **self._beside, **more}
        )

    def _with_ids(self, choice: Choice, news: Answer | Event) -> Choice:
        """The choice's tokens, if they were asked for; put into it."""
        if self.wants_token_ids:
            choice["token_ids"] = list(news.token_ids)
        return choice

    def _frame(self, index: int) -> tuple[bytes, bytes]:
        """Nearly all chunks of a choice differ in their text alone, so the rest is written once."""
        chunk = self._chunk(self.text_choice(index, _PLACEHOLDER))
        before, _, after = chunk.rpartition(json.dumps(_PLACEHOLDER).encode())
        self._frames[index] = before, after
        return before, after
