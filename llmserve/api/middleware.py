"""What every request passes before its endpoint: an id, the key, and the limit on its body. Plain ASGI.

Starlette's own base class for middleware is avoided: it hides disconnects from streaming endpoints.
"""

from __future__ import annotations

import re
import secrets
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import refusal

_SAFE_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RequestId:
    """Gives every answer an `x-request-id`: the client's own, if it sent one that can be printed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        sent = Headers(scope=scope).get("x-request-id", "")
        request_id = sent if _SAFE_ID.fullmatch(sent) else uuid.uuid4().hex

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


class BearerKey:
    """Refuses /v1 to those without one of the keys. Health, version and metrics stay open to probes."""

    def __init__(self, app: ASGIApp, keys: tuple[str, ...]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1") or scope["method"] == "OPTIONS":
            return await self._app(scope, receive, send)
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        # Every key is compared, so that the time taken says nothing about which one is near.
        matches = [secrets.compare_digest(given.strip().encode(), key) for key in self._keys]
        if scheme.lower() == "bearer" and any(matches):
            return await self._app(scope, receive, send)
        headers = {"www-authenticate": "Bearer"}
        error = HTTPException(401, "The API key is missing or wrong; send it as 'Authorization: Bearer KEY'.", headers)
        await refusal(scope["path"], error)(scope, receive, send)


class BodyLimit:
    """Refuses bodies above a size, by what they announce or, failing that, by what arrives."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        error = HTTPException(413, f"The request's body is larger than {self._max_bytes} bytes.")
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            return await refusal(scope["path"], error)(scope, receive, send)
        arrived = 0

        async def receive_limited() -> Message:
            nonlocal arrived
            message = await receive()
            arrived += len(message.get("body", b""))
            if arrived > self._max_bytes:
                raise error
            return message

        await self._app(scope, receive_limited, send)
