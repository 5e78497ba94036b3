"""Middleware that every request passes before its endpoint: a record with an id, and the key. Plain ASGI.

Starlette's own base class for middleware is avoided: it hides disconnects from streaming endpoints.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import sys
import uuid
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...errors import is_exit
from .errors import refusal
from .record import Record, current

_SAFE_ID = re.compile(r"[\x21-\x7e]{1,128}")
_MAX_PATH = 200


class RecordMiddleware:
    """Keeps a record of each request, names it in the answer's `x-request-id`, and drops clients that read nothing.

    The id is the client's own, if it sent one that can be printed. `ended` gets the record when all is done.
    """

    def __init__(
        self,
        app: ASGIApp,
        ended: Callable[[Record, Headers], None],
        write_seconds: float,
    ) -> None:
        self._app, self._ended, self._write_seconds = app, ended, write_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        record = _record(scope, headers)
        complete = False

        async def record_receive() -> Message:
            message = await receive()
            record.client_left |= message["type"] == "http.disconnect" and not complete
            return message

        def record_send(message: Message) -> Awaitable[None]:
            nonlocal complete
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = record.id
            elif message["type"] == "http.response.body":
                complete = not message.get("more_body", False)
            return sender.send(message)

        sender = Sender(send, self._write_seconds)
        token = current.set(record)
        try:
            await self._app(scope, record_receive, record_send)
        except BaseException as error:
            if isinstance(error, (Exception, asyncio.CancelledError)) or is_exit(error):
                raise
            # A panic of an extension: as an error it is answered like any other.
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        finally:
            sender.close()
            record.client_left |= sender.failed
            route = scope.get("route")
            record.route = getattr(route, "path", None)
            record.finish()
            self._ended(record, headers)
            current.reset(token)


class Sender:
    """Sends an answer, and gives up on a client that reads nothing for a while. To be closed.

    Nearly all messages are sent at once, so one timer serves all of them, set anew only when it has fired.

    Attributes:
        failed: the client has gone or was given up.
    """

    def __init__(self, send: Send, seconds: float) -> None:
        self.failed = False
        self._send, self._seconds = send, seconds
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[Any] | None = None  # which is sending
        self._since = self._loop.time()
        self._timed_out = False
        self._timer = self._loop.call_later(seconds, self._check_deadline)

    async def send(self, message: Message) -> None:
        """Send, or raise OSError when the client has not read enough for it in time."""
        self._task, self._since = asyncio.current_task(), self._loop.time()
        try:
            await self._send(message)
        except asyncio.CancelledError:
            if not self._timed_out:
                raise
            self.failed = True
            if sys.version_info >= (3, 11):
                self._task.uncancel()
            raise OSError(f"the client has read nothing for {self._seconds:g} seconds") from None
        except OSError:
            self.failed = True
            raise
        finally:
            self._task = None

    def close(self) -> None:
        self._timer.cancel()

    def _check_deadline(self) -> None:
        due = self._since + self._seconds
        if self._task is None:
            due = self._loop.time() + self._seconds
        elif self._loop.time() >= due:
            self._timed_out = True
            self._task.cancel()
            return
        self._timer = self._loop.call_at(due, self._check_deadline)


def _record(scope: Scope, headers: Headers) -> Record:
    sent = headers.get("x-request-id", "")
    path = scope.get("raw_path") or scope["path"].encode()
    return Record(
        id=sent if _SAFE_ID.fullmatch(sent) else uuid.uuid4().hex,
        method=scope["method"],
        path=path.decode("latin-1").encode("unicode_escape").decode()[:_MAX_PATH],
        client=(scope.get("client") or ("",))[0],
    )


class ApiKeyMiddleware:
    """Refuses those without one of the keys all but the open paths."""

    def __init__(self, app: ASGIApp, keys: Collection[str], open_paths: Collection[str]) -> None:
        self._app = app
        self._keys = [_digest(key.encode()) for key in keys]
        self._open = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._open or scope["method"] == "OPTIONS":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = [bearer] if scheme.lower() == "bearer" else []
        given += headers.getlist("x-api-key")
        # Every key is compared, as hashes of one length, so that the time taken says nothing about which one is near.
        digests = [_digest(word.strip().encode("latin-1")) for word in given]
        matches = [secrets.compare_digest(digest, key) for digest in digests for key in self._keys]
        if any(matches):
            return await self._app(scope, receive, send)
        error = HTTPException(
            401,
            "The API key is missing or wrong; send it as 'Authorization: Bearer KEY', or as 'x-api-key: KEY'.",
            {"www-authenticate": "Bearer"},
        )
        await refusal(scope["path"], error)(scope, receive, send)


class HeadMiddleware:
    """Answers HEAD wherever there is GET. The server leaves the body out, since it was asked by HEAD."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self._app(scope, receive, send)
        inner = {**scope, "method": "GET"}
        await self._app(inner, receive, send)
        if "route" in inner:
            scope["route"] = inner["route"]  # for the record


def _digest(word: bytes) -> bytes:
    return hashlib.sha256(word).digest()
