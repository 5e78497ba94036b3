"""Calls of Llama 3.2 and 4: a list in Python's notation, `[f(a=1), g(b="x")]`, perhaps after `<|python_start|>`.

Arguments are given on as JSON, while they come. Calls that a grammar enforces are written as JSON instead, which this
parser reads too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .calls import CallFormat, Function, Marker, json_calls, quoted
from .json import JsonParser
from .python_literal import python_value
from .stream import Emit, MismatchError, Reading

_START, _END = "<|python_start|>", "<|python_end|>"


class PythonicParser(JsonParser):
    end = _END

    def _read(self) -> Reading[None]:
        source = self._source
        yield from source.space()
        while True:
            if (yield from source.peek()) == "[":
                yield from source.take()
                yield from source.space()
                if (yield from source.peek()) == "{":
                    yield from self._objects()
                else:
                    yield from self._calls()
            self._emit_held()
            if not (yield from self._text(_START)):
                return
            yield from source.space()

    def _objects(self) -> Reading[None]:
        source = self._source
        while (yield from self._object()):
            yield from source.space()
            char = yield from source.peek()
            if char and char in ",]":
                yield from source.take()
                yield from source.space()
            if char != ",":
                source.held = source.held.lstrip("] \t\r\n")
                return

    def _calls(self) -> Reading[None]:
        source = self._source
        while (yield from self._call()):
            source.held = ""
            yield from source.space()
            if (yield from source.peek()) != ",":
                break
            yield from source.take()
            yield from source.space()
        if self._num_calls and not source.held.strip():
            try:
                yield from source.expect("]")
                yield from source.space()
                source.held = ""
                yield from source.expect(_END)
                source.held = ""
            except MismatchError:
                pass

    def _call(self) -> Reading[bool]:
        """Take `name(key=value, …)`. False if this is no call, of which all is still held then."""
        source = self._source
        name = yield from source.identifier()
        if name not in self._names:
            return False
        arguments = _Arguments(lambda: self._begin(name))
        try:
            yield from source.expect("(")
            yield from source.space()
            while (yield from source.peek()) != ")":
                arguments.key((yield from source.identifier()))
                yield from source.space()
                yield from source.expect("=")
                yield from source.space()
                if arguments.begun:
                    source.held = ""
                yield from python_value(source, arguments.emit)
                yield from source.space()
                if (yield from source.peek()) != ",":
                    break
                yield from source.take()
                yield from source.space()
            yield from source.expect(")")
            arguments.emit("}")
            return True
        except MismatchError:
            if arguments.begun:
                yield from self._emit_rest(arguments.emit)
            return arguments.begun


class _Arguments:
    """Writes keyword arguments as a JSON object. The call begins when the first value does."""

    def __init__(self, begin: Callable[[], Emit]) -> None:
        self._begin = begin
        self._emit: Emit | None = None
        self._pending = "{"

    @property
    def begun(self) -> bool:
        return self._emit is not None

    def key(self, name: str) -> None:
        if not name.isidentifier():
            raise MismatchError
        self._pending = f'{", " if self.begun else "{"}"{name}": '

    def emit(self, text: str) -> None:
        self._emit = self._emit or self._begin()
        self._emit(self._pending + text)
        self._pending = ""


def _constraint(functions: Sequence[Function], many: bool, marker: Marker) -> str:
    more = f" ({quoted(', ')} call)*" if many else ""
    return f'calls: "[" call{more} "]"\n{json_calls(functions)}'


FORMAT = CallFormat("pythonic", PythonicParser, (_START, "[func_name1("), (_START, _END), _constraint)
