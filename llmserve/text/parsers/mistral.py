"""Calls of Mistral: `[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`, and since version 11 `[TOOL_CALLS]name[ARGS]{…}`.

Their ids have nine letters and digits, which Mistral's templates insist on.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence

from .calls import CallFormat, CallParser, Function, Marker, json_calls, quoted
from .stream import MismatchError, Reading, json_value

_CALLS, _ARGS, _CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_ALPHABET = string.ascii_letters + string.digits


def _new_call_id() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(9))


class MistralParser(CallParser):
    new_id = staticmethod(_new_call_id)

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
                self._emit_held()
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
        emit = None
        try:
            if name not in self._names:
                raise MismatchError
            if (yield from source.peek()) == "[":
                yield from source.take()
                if (yield from source.peek()) == "C":
                    yield from source.expect(_CALL_ID[1:])
                    yield from source.identifier()
                    yield from source.expect("[")
                yield from source.expect(_ARGS[1:])
            yield from source.space()
            if (yield from source.peek()) != "{":
                raise MismatchError
            emit = self._begin(name)
            yield from json_value(source, emit)
        except MismatchError:
            if emit is None:
                self._emit_held()
            else:
                yield from self._emit_rest(emit)


def _constraint(functions: Sequence[Function], many: bool, marker: Marker) -> str:
    more = f" ({quoted(', ')} call)*" if many else ""
    return f'calls: {marker(_CALLS)} "[" call{more} "]"\n{json_calls(functions)}'


FORMAT = CallFormat("mistral", MistralParser, (_CALLS,), (_CALLS, _ARGS, _CALL_ID), _constraint)
