"""Calls as plain JSON, one or a list of them, for templates that show tools in no known way.

A Markdown fence around it is taken off. JSON that does not begin the answer is text.
"""

from __future__ import annotations

from collections.abc import Sequence

from .calls import CallFormat, CallParser, Function, Marker, json_calls, quoted
from .stream import MismatchError, Reading

_FENCE = "```"


class JsonParser(CallParser):
    def _read(self) -> Reading[None]:
        source = self._source
        yield from source.space()
        fenced = yield from self._fence()
        many = (yield from source.peek()) == "["
        if many:
            yield from source.take()
            yield from source.space()
        while (yield from source.peek()) == "{" and (yield from self._object()):
            yield from source.space()
            if (yield from source.peek()) not in (",", ";"):
                break
            yield from source.take()
            yield from source.space()
        if self._num_calls and not source.held.strip(" \t\r\n,;"):
            yield from self._close(many, fenced)
        self._emit_held()
        yield from self._text()

    def _fence(self) -> Reading[bool]:
        source = self._source
        try:
            yield from source.expect(_FENCE)
        except MismatchError:
            return False
        yield from source.identifier()
        yield from source.space()
        return True

    def _close(self, many: bool, fenced: bool) -> Reading[None]:
        source = self._source
        try:
            for wanted in ("]" if many else "", _FENCE if fenced else ""):
                yield from source.expect(wanted)
                yield from source.space()
                source.held = ""
        except MismatchError:
            pass


def _constraint(functions: Sequence[Function], many: bool, marker: Marker) -> str:
    more = f' "[" call ({quoted(", ")} call)* "]"' if many else " call"
    return f"calls:{more}\n{json_calls(functions)}"


FORMAT = CallFormat("json", JsonParser, (), (), _constraint)
