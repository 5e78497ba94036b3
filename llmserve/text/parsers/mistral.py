"""Mistral: `[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`, and since version 11 `[TOOL_CALLS]name[ARGS]{…}` per call.

Their ids have nine letters and digits, which their templates insist on.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence

from .calls import CallParser, Format, Function, Marker, json_calls, quoted
from .stream import NotThisError, Reading, json_value

_CALLS, _ARGS, _CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_ALPHABET = string.ascii_letters + string.digits


def _nine() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(9))


class MistralParser(CallParser):
    new_id = staticmethod(_nine)

    def _read(self) -> Reading[None]:
        source = self._source
        while (yield from self._text(_CALLS)):
            yield from source.space()
            if (yield from source.peek()) == "[":
                yield from self._list()
            else:
                yield from self._named()

    def _list(self) -> Reading[None]:
        source = self._source
        yield from source.take()
        while True:
            yield from source.space()
            if not (yield from self._object()):
                self._say_held()
                return
            yield from source.space()
            char = yield from source.peek()
            if char and char in ",]":
                yield from source.take()
                source.held = ""
            if char != ",":
                return

    def _named(self) -> Reading[None]:
        source = self._source
        name = yield from source.identifier()
        give = None
        try:
            if name not in self._names:
                raise NotThisError
            if (yield from source.peek()) == "[":
                yield from source.take()
                if (yield from source.peek()) == "C":
                    yield from source.expect(_CALL_ID[1:])
                    yield from source.identifier()
                    yield from source.expect("[")
                yield from source.expect(_ARGS[1:])
            yield from source.space()
            if (yield from source.peek()) != "{":
                raise NotThisError
            give = self._begin(name)
            yield from json_value(source, give)
        except NotThisError:
            if give is None:
                self._say_held()
            else:
                yield from self._spill(give)


def _constraint(functions: Sequence[Function], many: bool, marker: Marker) -> str:
    more = f" ({quoted(', ')} call)*" if many else ""
    return f'calls: {marker(_CALLS)} "[" call{more} "]"\n{json_calls(functions)}'


FORMAT = Format("mistral", MistralParser, (_CALLS,), (_CALLS, _ARGS, _CALL_ID), _constraint)
