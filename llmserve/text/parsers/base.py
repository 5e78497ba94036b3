"""What a model's text is made of: words, reasoning and calls of tools, told apart as the text arrives.

A parser takes text in pieces of any size and gives parts. What it gives does not depend on the pieces: parts folded are
the same however the text was cut. Nothing is lost: text that looked like a call and was none comes out as text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    """Words for the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What the model thought before it answered."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallBegin:
    """A call begins. Calls of one answer are counted from 0 without gaps; a call's arguments follow its beginning."""

    index: int
    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """A piece of call `index`'s arguments. The pieces joined are one JSON object, unless the answer was cut short."""

    index: int
    json: str


Part = Text | Reasoning | ToolCallBegin | ToolCallArguments


class OutputParser:
    """One choice's text to parts. This one is for plain text; the others are subclasses.

    Attributes:
        is_reasoning: what comes now belongs to the reasoning.
        may_reason: so it does, or perhaps will; once false, it stays false.
    """

    is_reasoning = False
    may_reason = False

    def feed(self, text: str) -> list[Part]:
        """What is certain now that this text has come too."""
        return [Text(text)] if text else []

    def finish(self) -> list[Part]:
        """What was held back, at the end of the text. Nothing may be fed afterwards."""
        return []


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A whole call; `arguments` is JSON."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ParsedOutput:
    """A whole answer, told apart."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()


def fold_parts(parts: Iterable[Part]) -> ParsedOutput:
    """The answer that a stream of parts comes to."""
    text: list[str] = []
    reasoning: list[str] = []
    begun: list[ToolCallBegin] = []
    arguments: list[list[str]] = []
    for part in parts:
        if isinstance(part, Text):
            text.append(part.text)
        elif isinstance(part, Reasoning):
            reasoning.append(part.text)
        elif isinstance(part, ToolCallBegin):
            begun.append(part)
            arguments.append([])
        else:
            arguments[part.index].append(part.json)
    calls = tuple(ToolCall(call.call_id, call.name, "".join(its)) for call, its in zip(begun, arguments, strict=True))
    return ParsedOutput("".join(text), "".join(reasoning), calls)
