"""Calls of Llama 3.1 to 3.3: the whole answer is `{"name": …, "parameters": {…}}`, or follows `<|python_tag|>`.

Several calls are separated by semicolons. An object that is not at the beginning of the answer is text.
"""

from __future__ import annotations

from collections.abc import Sequence

from .calls import CallFormat, CallParser, Function, Marker, json_calls, quoted
from .stream import Reading

_TAG = "<|python_tag|>"


class Llama3JsonParser(CallParser):
    def _read(self) -> Reading[None]:
        source = self._source
        yield from source.space()
        while True:
            while (yield from source.peek()) == "{" and (yield from self._object()):
                yield from source.space()
                if (yield from source.peek()) in (";", ","):
                    yield from source.take()
                    yield from source.space()
            if self._num_calls and not source.held.strip(" \t\r\n;,"):
                source.held = ""
            self._emit_held()
            if not (yield from self._text(_TAG)):
                return
            yield from source.space()


def _constraint(functions: Sequence[Function], many: bool, marker: Marker) -> str:
    more = f" ({quoted('; ')} call)*" if many else ""
    return f"calls: call{more}\n{json_calls(functions, 'parameters')}"


FORMAT = CallFormat("llama3_json", Llama3JsonParser, ('"parameters": ', _TAG), (_TAG,), _constraint)
