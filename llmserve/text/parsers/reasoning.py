"""Reasoning, in tags before the answer: `<think>…</think>`, or what the model's template has instead."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from .base import OutputParser, Part, ReasoningPart
from .calls import overlap, trimmed
from .stream import CharSource, MismatchError, Reading


@dataclass(frozen=True, slots=True)
class Tags:
    """The tags around reasoning."""

    start: str
    end: str


TAGS = (
    Tags("<think>", "</think>"),
    Tags("[THINK]", "[/THINK]"),
    Tags("<|START_THINKING|>", "<|END_THINKING|>"),
    Tags("<reasoning>", "</reasoning>"),
)


def tags_of(template: str, special_tokens: Collection[str] = ()) -> Tags | None:
    """The tags of a model's reasoning, by its chat template or its tokenizer's tokens; None if it shows none."""
    for tags in TAGS:
        if any(tag in text for tag in (tags.start, tags.end) for text in (template, special_tokens)):
            return tags
    return None


class ReasoningParser(OutputParser):
    """Splits reasoning off at the beginning of a text, and leaves the rest to another parser.

    White space just within the tags, and after them, is dropped.
    """

    def __init__(self, tags: Tags, rest: OutputParser, *, opened: bool) -> None:
        """`opened`: the prompt ends with the start tag, so that the text begins with reasoning."""
        self._tags, self._rest, self._opened = tags, rest, opened
        self._source = CharSource()
        self._parts: list[Part] = []
        self._pieces: list[str] = []
        self.may_reason = True
        self._reading = self._read()
        next(self._reading)

    def feed(self, text: str) -> list[Part]:
        fed = 0
        while self.may_reason and fed < len(text):
            self._step(text[fed])
            fed += 1
        self._take_reasoning()
        parts, self._parts = self._parts, []
        return parts + self._rest.feed(text[fed:])

    def finish(self) -> list[Part]:
        if self.may_reason:
            self._step("")
        self._take_reasoning()
        parts, self._parts = self._parts, []
        return parts + self._rest.finish()

    def _step(self, char: str) -> None:
        try:
            self._reading.send(char)
        except StopIteration:
            self.may_reason = self.is_reasoning = False
            self._take_reasoning()
            self._parts += self._rest.feed(self._source.unread())

    def _take_reasoning(self) -> None:
        text = "".join(self._pieces)
        self._pieces.clear()
        if text:
            self._parts.append(ReasoningPart(text))

    def _read(self) -> Reading[None]:
        source = self._source
        if not self._opened:
            try:
                yield from source.space()
                yield from source.expect(self._tags.start)
            except MismatchError:
                return
        source.held = ""
        self.is_reasoning = True
        end = self._tags.end
        yield from source.space()
        source.held = ""
        while (yield from source.take()):
            held = source.held
            if held.endswith(end):
                self._pieces.append(trimmed(held.removesuffix(end)))
                source.held = ""
                break
            known = trimmed(held[: len(held) - overlap(held, end)])
            self._pieces.append(known)
            source.held = held[len(known) :]
        else:
            self._pieces.append(trimmed(source.held))
        source.held = ""
        self.is_reasoning = False
        yield from source.space()
        source.held = ""
