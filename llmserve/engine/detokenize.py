"""Detokenization: token ids to text, piece by piece, cut where a stop string begins.

One `Detokenizer` per sequence. The tokenizer knows what tokens spell; the scheduler knows which tokens end a sequence.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol


class TextStream(Protocol):
    """Spells one sequence of tokens, keeping incomplete characters back."""

    def step(self, token_id: int, /) -> str:
        """The text that this token completes; '' while a character is incomplete."""
        ...

    def flush(self) -> str:
        """The rest of the text, at the end."""
        ...


class Tokenizer(Protocol):
    """The part of a tokenizer that the engine needs."""

    def stream(self, skip_special_tokens: bool, *, shown: Collection[int], continues: bool) -> TextStream:
        """`shown`: special tokens that are not skipped; `continues`: the tokens follow others, so a space that they
        begin with is one."""
        ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str: ...


class Detokenizer:
    """The text of one sequence, up to the first stop string.

    The stop string that is complete first wins (the longest, if several are complete at once), so the text depends on
    the characters alone and not on how they fell into tokens. Text that may be the beginning of a stop string is held
    back until it is known not to be.

    Attributes:
        stop: the stop string that was found, or None. Nothing more is to be pushed then.
    """

    def __init__(
        self, stream: TextStream, stops: Sequence[str] = (), min_tokens: int = 0, include_stop: bool = False
    ) -> None:
        """Stop strings that end within the first `min_tokens` tokens' text are part of the text; the one that ends it
        is with `include_stop`."""
        self.stop: str | None = None
        self._stream = stream
        self._stops, self._include = stops, include_stop
        self._unguarded = min_tokens if stops else 0
        self._held = ""

    def push(self, token_id: int) -> str:
        """The text that can be shown now that this token is known."""
        text = self._stream.step(token_id)
        if self._unguarded:
            self._unguarded -= 1
            return text
        return self._filter(text) if self._stops and text else text

    def flush(self) -> str:
        """The text that was held back, at the end. '' if a stop string was found."""
        if self.stop is not None:
            return ""
        rest = self._stream.flush()
        text = self._filter(rest) if self._stops and rest else rest
        held, self._held = self._held, ""
        return text if self.stop is not None else text + held

    def _filter(self, text: str) -> str:
        text = self._held + text
        matches = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if matches:
            end, at, self.stop = min(matches)
            self._held = ""
            return text[: end if self._include else at]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """The number of characters at the end of `text` that may be the beginning of `stop`."""
    return next((k for k in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-k:])), 0)
