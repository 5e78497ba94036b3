"""Bodies of requests, read before anything else sees them: bounded in bytes, time and depth, and JSON to the letter.

Python's own reader of JSON follows brackets as deep as its stack goes and takes NaN and 1e999 for numbers; what comes
after it can do neither. No document is built here: the bytes are checked and handed on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
from functools import partial
from typing import Any, NoReturn

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...errors import LLMServeError, QueueFullError, RequestError
from .errors import refusal

_METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_BRACKETS = re.compile(rb'"[^"]*"?|[\[{]|[\]}]')
_STRUCTURE = re.compile(rb'"[^"]*"?|[\[{]|[\]}]|,')
_FORMS = bytes.maketrans(b"123456789E", b"000000000e")  # to look for forms of numbers
_ODD_FORMS = (b"NaN", b"Infinity", b"e000", b"e+000", b"0" * 300)
LARGE = 1 << 17  # bytes from which on a body is looked at beside the event loop
_BODIES = 16  # of the largest size, that may be in memory at once
_LINGER_SECONDS = 2.0  # for a client that goes on sending what has been refused
_HELD = "llmserve.held"  # where the scope counts the bytes of its body


class BodyMiddleware:
    """Refuses bodies that are too large, too slow, too deep, of too many values, or no JSON, in OpenAI's shape."""

    def __init__(self, app: ASGIApp, max_bytes: int, max_depth: int, max_values: int, seconds: float) -> None:
        self._app = app
        self._max_bytes, self._seconds = max_bytes, seconds
        self._check_json = partial(check_json, max_depth=max_depth, max_values=max_values)
        self._held = 0  # bytes of all bodies whose requests are open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in _METHODS:
            return await self._app(scope, receive, send)
        try:
            try:
                body = await self._body(scope, receive)
            except (HTTPException, LLMServeError) as error:
                self._release(scope)
                return await refusal(scope["path"], error)(scope, receive, send)
            if body is None:
                return None  # the client has gone
            return await self._app(scope, _replayed(body, receive), send)
        finally:
            self._release(scope)

    def _release(self, scope: Scope) -> None:
        self._held -= scope.pop(_HELD, 0)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body, or None if the client goes away. Raises HTTPException or RequestError for a bad one."""
        headers = Headers(scope=scope)
        announced = headers.get("content-length", "")
        if announced.isdecimal() and (len(announced) > 18 or int(announced) > self._max_bytes):
            if "expect" not in headers:  # a client that asks first has sent nothing yet
                await _discard(receive)
            raise self._too_large()
        try:
            body = await asyncio.wait_for(self._read(scope, receive), self._seconds)
        except asyncio.TimeoutError:
            raise HTTPException(
                408, f"The request's body did not arrive within {self._seconds:g} seconds.", {"connection": "close"}
            ) from None
        if body is not None and len(body) > self._max_bytes:
            self._release(scope)
            await _discard(receive)
            raise self._too_large()
        if body is not None:
            await self._check(body)
        return body

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body, or as much of it as shows that it is too large."""
        body, more = bytearray(), True
        while more and len(body) <= self._max_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            more = message.get("more_body", False)
            scope[_HELD] = scope.get(_HELD, 0) + len(part)
            self._held += len(part)
            if self._held > _BODIES * self._max_bytes:
                raise QueueFullError("The server is busy reading other requests. Please try again later.")
            body += part
        return bytes(body)

    def _too_large(self) -> HTTPException:
        return HTTPException(
            413, f"The request's body is larger than {self._max_bytes} bytes.", {"connection": "close"}
        )

    async def _check(self, body: bytes) -> None:
        if len(body) < LARGE:
            self._check_json(body)
        else:
            await asyncio.to_thread(self._check_json, body)


async def _discard(receive: Receive) -> None:
    """Take the rest of a body for a while: most clients look for an answer only after sending all."""

    async def rest() -> None:
        message: Message = {"more_body": True}
        while message.get("more_body", False):
            message = await receive()

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(rest(), _LINGER_SECONDS)


def _replayed(body: bytes, receive: Receive) -> Receive:
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return first.pop() if first else await receive()

    return replay


def check_json(body: bytes, max_depth: int, max_values: int = 2**19) -> None:
    """Refuse what Python's reader would take, or choke on, and JSON has no place for. Raises RequestError."""
    if b"\0" in body:
        raise RequestError("The request's body is not valid JSON: it must be in UTF-8, without null bytes.")
    brackets = body.count(b"[") + body.count(b"{")
    many = brackets + body.count(b",") > max_values
    if brackets > max_depth or many:
        _check_structure(body, max_depth, max_values, _STRUCTURE if many else _BRACKETS)
    forms = body.translate(_FORMS)
    if any(form in forms for form in _ODD_FORMS):
        with contextlib.suppress(ValueError, RecursionError):  # no JSON at all, which the endpoint will say in detail
            json.loads(body, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_integer)


def _check_structure(body: bytes, max_depth: int, max_values: int, tokens: re.Pattern[bytes]) -> None:
    depth = values = 0
    # Without escapes, a quote is where a string begins or ends.
    for token in tokens.finditer(body.replace(b"\\\\", b"").replace(b'\\"', b"")):
        first = token.group()[:1]
        if first in b"[{":
            depth += 1
            values += 1
            if depth > max_depth:
                raise RequestError(f"The request's body nests lists and objects more than {max_depth} deep.")
        elif first == b",":
            values += 1
        elif first != b'"':
            depth -= 1
        if values > max_values:
            raise RequestError(f"The request's body holds more than {max_values} values.")


def _refuse_constant(name: str) -> NoReturn:
    raise RequestError(f"The request's body is not valid JSON: {name} is no number.")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise RequestError(f"The request's body has a number that is too large: {text[:20]}.")
    return value


def _integer(text: str) -> Any:
    if len(text) > 300:
        raise RequestError(f"The request's body has a number of {len(text)} digits, which is too large.")
    return int(text)
