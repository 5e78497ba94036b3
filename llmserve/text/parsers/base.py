"""The parts of a model's text (words, reasoning, calls of tools), and the parser that tells them apart as it arrives.

A parser takes text in pieces of any size and gives parts. What it gives does not depend on the pieces: parts folded are
the same however the text was cut. Nothing is lost: text that looked like a call and was none comes out as text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TextPart:
    """Text for the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningPart:
    """Reasoning before the answer."""

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


Part = TextPart | ReasoningPart | ToolCallBegin | ToolCallArguments


class OutputParser:
    """One choice's text to parts. This one is for plain text; the others are subclasses.

    Attributes:
        is_reasoning: what comes now belongs to the reasoning.
        may_reason: so it does, or perhaps will; once false, it stays false.
    """

    is_reasoning = False
    may_reason = False

    def feed(self, text: str) -> list[Part]:
        """The parts that are certain with this text."""
        return [TextPart(text)] if text else []

    def finish(self) -> list[Part]:
        """The parts that were held back, at the end of the text. Nothing may be fed afterwards."""
        return []


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """A whole call; `arguments` is JSON."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ParsedOutput:
    """A whole answer, told apart."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[ParsedCall, ...] = ()


def fold_parts(parts: Iterable[Part]) -> ParsedOutput:
    """The answer that a stream of parts amounts to."""
    text: list[str] = []
    reasoning: list[str] = []
    begun: list[ToolCallBegin] = []
    arguments: list[list[str]] = []
    for part in parts:
        if isinstance(part, TextPart):
            text.append(part.text)
        elif isinstance(part, ReasoningPart):
            reasoning.append(part.text)
        elif isinstance(part, ToolCallBegin):
            begun.append(part)
            arguments.append([])
        else:
            arguments[part.index].append(part.json)
    calls = tuple(ParsedCall(call.call_id, call.name, "".join(its)) for call, its in zip(begun, arguments, strict=True))
    return ParsedOutput("".join(text), "".join(reasoning), calls)
