"""The common part of all formats of tool calls: text around calls, calls as JSON objects, text that looks like one.

A call is given on from the moment that its name and the beginning of its arguments are known, and then streamed.
Until then it may turn out to be text, and comes out as it went in: so does a call of a function that was not offered,
and an object that is not JSON. Arguments that go wrong once they have begun cannot be taken back; they are passed on as
the model wrote them, as OpenAI's API does, and the client sees that they are not JSON.
"""

from __future__ import annotations

import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import groupby

from .base import OutputParser, Part, TextPart, ToolCallArguments, ToolCallBegin
from .stream import CharSource, Emit, MismatchError, Reading, json_string, json_value

_MEMBERS = ("name", "arguments", "parameters", "id", "type", "index")  # an object with others is no call
_MAX_HELD = 64  # characters of white space that wait for what comes after them
_ARGUMENTS = ("arguments", "parameters")  # Hermes and Mistral say the first, Llama the second


def call_id() -> str:
    """A fresh id for a call."""
    return f"call_{uuid.uuid4().hex[:24]}"


class CallParser(OutputParser, ABC):
    """Text in which calls may stand; how they stand there is each format's `_read`.

    Args:
        names: functions that may be called; calls of others are text.
        parallel: False leaves out all calls but the first.
        new_id: makes the calls' ids.
    """

    new_id: Callable[[], str] = staticmethod(call_id)
    end = ""  # what follows a call in this format, if anything does

    def __init__(
        self, names: Collection[str], *, parallel: bool = True, new_id: Callable[[], str] | None = None
    ) -> None:
        self._names = names
        self._parallel = parallel
        self._new_id = new_id or self.new_id
        self._source = CharSource()
        self._parts: list[Part] = []
        self._num_calls = 0
        self._has_text = False
        self._reading = self._read()
        next(self._reading)

    def feed(self, text: str) -> list[Part]:
        for char in text:
            self._reading.send(char)
        return self._take_parts()

    def finish(self) -> list[Part]:
        try:
            self._reading.send("")
        except StopIteration:
            return self._take_parts()
        raise AssertionError("a format reads on after the end of the text")

    @abstractmethod
    def _read(self) -> Reading[None]:
        """Read the whole text, up to and with its end."""

    # What formats are made of

    def _text(self, *markers: str) -> Reading[str]:
        """Give text on until one of the markers comes, which stays held, with the white space before it.

        Returns the marker; "" at the end of the text.
        """
        source = self._source
        suspicious = {*"".join(markers), *" \t\r\n"}
        while char := (yield from source.take()):
            if char not in suspicious:
                self._emit_held()
                continue
            held = source.held
            found = next((m for m in markers if held.endswith(m)), "")
            keep = len(found) or max((overlap(held, m) for m in markers), default=0)
            text = trimmed(held[: len(held) - keep])
            source.held = held[len(text) :]
            self._emit_text(text)
            if found:
                return found
        if self._num_calls and not source.held.strip():
            source.held = ""
        self._emit_held()
        return ""

    def _emit_text(self, text: str) -> None:
        if self._num_calls and not self._has_text:
            text = text.lstrip(" \t\r\n")
        if text:
            self._has_text = True
            self._parts.append(TextPart(text))

    def _emit_held(self) -> None:
        text, self._source.held = self._source.held, ""
        self._emit_text(text)

    def _begin(self, name: str) -> Emit:
        """A call begins; returns what takes its arguments."""
        index, self._num_calls = self._num_calls, self._num_calls + 1
        wanted = self._parallel or index == 0
        self._source.held = ""
        if wanted:
            self._parts.append(ToolCallBegin(index, self._new_id(), name))

        def emit(json_text: str) -> None:
            self._source.held = ""
            if wanted and json_text:
                self._parts.append(ToolCallArguments(index, json_text))

        return emit

    def _object(self) -> Reading[bool]:
        """Take `{"name": …, "arguments": {…}}`. False if this is no call, of which all is still held then."""
        source = self._source
        name: str | None = None
        early: str | None = None  # arguments that came before the name, or are no object
        emit: Emit | None = None
        complete = False
        try:
            yield from source.expect("{")
            while True:
                yield from source.space()
                key = json.loads((yield from _collected(source, json_string)))
                if key not in _MEMBERS:
                    raise MismatchError
                yield from source.space()
                yield from source.expect(":")
                yield from source.space()
                if key == "name" and name is None:
                    name = json.loads((yield from _collected(source, json_string)))
                    if name not in self._names:
                        return False
                elif key in _ARGUMENTS and name is not None and (yield from source.peek()) == "{" and not emit:
                    emit = self._begin(name)
                    yield from json_value(source, emit)
                    complete = True
                else:
                    value = yield from _collected(source, json_value)
                    early = value if key in _ARGUMENTS else early
                yield from source.space()
                if (yield from source.peek()) == "}":
                    yield from source.take()
                    break
                yield from source.expect(",")
        except MismatchError:
            if emit and not complete:
                yield from self._emit_rest(emit)
            return emit is not None
        if emit is None:
            arguments = _as_object(early)
            if name is None or arguments is None:
                return False
            self._begin(name)(arguments)
        source.held = ""
        return True

    def _emit_rest(self, emit: Emit) -> Reading[None]:
        """Pass the rest of a broken call on, up to where the format would have it end."""
        source = self._source
        emit(source.held)
        while (yield from source.peek()):
            yield from source.take()
            if self.end and source.held.endswith(self.end):
                emit(source.held.removesuffix(self.end).rstrip())
                return
            known = len(source.held) - overlap(source.held, self.end)
            rest = source.held[known:]
            emit(source.held[:known])
            source.held = rest
        emit(source.held)

    def _take_parts(self) -> list[Part]:
        """The parts since the last time, neighbours joined."""
        joined: list[Part] = []
        for kind, parts in groupby(self._parts, lambda part: (type(part), getattr(part, "index", None))):
            its = list(parts)
            if kind[0] is TextPart:
                joined.append(TextPart("".join(p.text for p in its if isinstance(p, TextPart))))
            elif kind[0] is ToolCallArguments:
                pieces = [p for p in its if isinstance(p, ToolCallArguments)]
                joined.append(ToolCallArguments(pieces[0].index, "".join(p.json for p in pieces)))
            else:
                joined += its
        self._parts.clear()
        return joined


@dataclass(frozen=True, slots=True)
class Function:
    """A function that a model may call, with the JSON schema of its arguments as JSON text; `param` is its place."""

    name: str
    schema: str
    param: str = ""


Marker = Callable[[str], str]  # a marker as a grammar writes it: a special token, or its characters


@dataclass(frozen=True, slots=True)
class CallFormat:
    """One way of writing calls.

    Attributes:
        name: as the setting `tool_call_format` has it.
        parser: reads it.
        signs: any of these in a chat template, or among the special tokens, tells the format.
        markers: texts that are special tokens in some tokenizers and must be seen by the parser.
        constraint: the rules of a Lark grammar, beginning with `calls`, that admits one or more (`many`) calls of the
            functions and nothing else. The arguments of function i are left to a grammar of their own, `@part_i`.
    """

    name: str
    parser: type[CallParser]
    signs: tuple[str, ...]
    markers: tuple[str, ...]
    constraint: Callable[[Sequence[Function], bool, Marker], str]


def json_calls(functions: Sequence[Function], arguments: str = "arguments") -> str:
    """The rule `call` of a Lark grammar: one JSON object, as templates write it."""
    openings = [quoted(f'{{"name": {json.dumps(f.name)}, "{arguments}": ') for f in functions]
    return "call: " + " | ".join(f'{opening} @part_{i} "}}"' for i, opening in enumerate(openings))


def quoted(text: str) -> str:
    """A text as Lark writes it."""
    return json.dumps(text, ensure_ascii=False)


def trimmed(text: str) -> str:
    """Without the white space at its end, unless there is so much of it that holding it back would take time."""
    return text if len(text) > _MAX_HELD and text.isspace() else text.rstrip(" \t\r\n")


def overlap(text: str, marker: str) -> int:
    """The number of characters at the end of `text` that may be the beginning of `marker`, not whole there."""
    for size in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:size]):
            return size
    return 0


def _collected(source: CharSource, reader: Callable[[CharSource, Emit], Reading[None]]) -> Reading[str]:
    """A reader's text, whole; it stays held."""
    pieces: list[str] = []
    yield from reader(source, pieces.append)
    return "".join(pieces)


def _as_object(arguments: str | None) -> str | None:
    """Arguments as the text of a JSON object: none are {}, a string may hold one; None if they are anything else."""
    if arguments is None or arguments == "null":
        return "{}"
    try:
        value = json.loads(arguments)
        if isinstance(value, str):
            arguments, value = value, json.loads(value)
    except (ValueError, RecursionError):
        return None
    return arguments if isinstance(value, dict) else None
