"""Calls of Hermes, Qwen 2.5, 3 and many others: `<tool_call>{"name": …, "arguments": {…}}</tool_call>` each."""

from __future__ import annotations

from collections.abc import Sequence

from .calls import CallFormat, CallParser, Function, Marker, json_calls, quoted
from .stream import Reading

_BEGIN, _END = "<tool_call>", "</tool_call>"


class HermesParser(CallParser):
    end = _END

    def _read(self) -> Reading[None]:
        source = self._source
        while (yield from self._text(_BEGIN)):
            yield from source.space()
            if (yield from self._object()):
                yield from self._close()
            else:
                self._emit_held()

    def _close(self) -> Reading[None]:
        """Drop the end tag, and closing braces too many before it; what else is there is text."""
        source = self._source
        while (char := (yield from source.peek())) and char in "} \t\r\n":
            yield from source.take()
        for wanted in _END:
            if (yield from source.peek()) != wanted:
                return
            yield from source.take()
        source.held = ""


def _constraint(functions: Sequence[Function], many: bool, marker: Marker) -> str:
    separator = quoted("\n")
    more = f" ({separator} tagged)*" if many else ""
    tagged = f"tagged: {marker(_BEGIN)} {separator} call {separator} {marker(_END)}"
    return f"calls: tagged{more}\n{tagged}\n{json_calls(functions)}"


FORMAT = CallFormat("hermes", HermesParser, (_BEGIN,), (_BEGIN, _END), _constraint)
