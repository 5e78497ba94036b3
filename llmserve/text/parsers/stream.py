"""A source of characters, one at a time, for parsers that are written as if they had the whole text.

A parser is a generator: it asks a `CharSource` for the next character with `yield from` and is resumed when there is
one. Working by the character makes its result independent of how the text was cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, str, T]
Emit = Callable[[str], None]

_SPACE = " \t\r\n"
_SCALAR = re.compile(r"true|false|null|-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_SCALAR_CHARS = frozenset("truefalsn-+.eE0123456789")
_HEX = frozenset("0123456789abcdefABCDEF")


class MismatchError(Exception):
    """The text is not what a reader takes. Nothing that it had taken is lost: it is held by the source."""


class CharSource:
    """The text that is still to be read.

    Attributes:
        held: what was taken and not yet used; a parser that has used it sets it to "".
    """

    def __init__(self) -> None:
        self.held = ""
        self._next: str | None = None

    def peek(self) -> Reading[str]:
        """The next character, which stays; "" at the end of the text."""
        if self._next is None:
            self._next = yield
        return self._next

    def take(self) -> Reading[str]:
        """The next character; it is held from now on."""
        char = yield from self.peek()
        if char:
            self.held += char
            self._next = None
        return char

    def unread(self) -> str:
        """Everything that was not accounted for: what is held, and the next character if it was seen."""
        return self.held + (self._next or "")

    def expect(self, text: str) -> Reading[None]:
        """Take exactly this."""
        for wanted in text:
            if (yield from self.peek()) != wanted:
                raise MismatchError
            yield from self.take()

    def space(self) -> Reading[str]:
        """Take white space; which was taken, and perhaps none."""
        taken = ""
        while (char := (yield from self.peek())) and char in _SPACE:
            taken += yield from self.take()
        return taken

    def identifier(self) -> Reading[str]:
        """Take a function's or a parameter's name: letters, digits, and `_ - . :`."""
        name = ""
        while (char := (yield from self.peek())) and (char.isalnum() or char in "_-.:"):
            name += yield from self.take()
        return name


def json_string(source: CharSource, emit: Emit) -> Reading[None]:
    """Take a JSON string, giving its characters on as they come.

    Control characters, which models leave unescaped, are escaped. Raises NotThisError.
    """
    yield from source.expect('"')
    emit('"')
    while char := (yield from source.take()):
        if char == "\\":
            kind = yield from source.take()
            if not kind or kind not in '"\\/bfnrtu':
                raise MismatchError
            escape = char + kind
            if kind == "u":
                for _ in range(4):
                    if (yield from source.peek()) not in _HEX:
                        raise MismatchError
                    escape += yield from source.take()
            emit(escape)
        else:
            emit(json.dumps(char)[1:-1] if char < " " else char)
            if char == '"':
                return
    raise MismatchError


def json_value(source: CharSource, emit: Emit) -> Reading[None]:
    """Take a JSON value, giving its text on as it comes. Raises NotThisError; what was given until then stays given."""
    open_brackets: list[str] = []
    while True:
        opening = yield from source.peek()
        if opening == '"':
            yield from json_string(source, emit)
        elif opening and opening in "{[":
            emit((yield from source.take()))
            emit((yield from source.space()))
            closing = "}" if opening == "{" else "]"
            if (yield from source.peek()) != closing:
                open_brackets.append(closing)
                if closing == "}":
                    yield from _key(source, emit)
                continue
            emit((yield from source.take()))
        else:
            yield from _scalar(source, emit)
        while open_brackets:
            emit((yield from source.space()))
            char = yield from source.peek()
            if char == ",":
                emit((yield from source.take()))
                emit((yield from source.space()))
                if open_brackets[-1] == "}":
                    yield from _key(source, emit)
                break
            if char != open_brackets[-1]:
                raise MismatchError
            emit((yield from source.take()))
            open_brackets.pop()
        else:
            return


def _key(source: CharSource, emit: Emit) -> Reading[None]:
    yield from json_string(source, emit)
    emit((yield from source.space()))
    yield from source.expect(":")
    emit(":")
    emit((yield from source.space()))


def _scalar(source: CharSource, emit: Emit) -> Reading[None]:
    text = ""
    while (char := (yield from source.peek())) and char in _SCALAR_CHARS:
        text += yield from source.take()
    if not _SCALAR.fullmatch(text):
        raise MismatchError
    emit(text)
