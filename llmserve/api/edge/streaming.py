"""Server-sent events, and clients that disconnect. Knows HTTP, not what is sent over it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"


class ClientGoneError(Exception):
    """The client has closed its connection, so there is nothing to answer."""


class AsciiJson(JSONResponse):
    """A JSON body in ASCII, which can quote whatever a client has sent, halves of surrogate pairs included."""

    def render(self, content: Any) -> bytes:
        return _dump(content)


def event(data: Mapping[str, Any]) -> bytes:
    """One event with a JSON object, on one line and in ASCII, so that no proxy can split it wrongly."""
    return b"data: " + _dump(data) + b"\n\n"


def named_event(name: str, data: Mapping[str, Any]) -> bytes:
    """The same under a name, for protocols that give their events names."""
    return b"event: " + name.encode() + b"\n" + event(data)


def _dump(data: object) -> bytes:
    return _encode(data).encode()


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode  # which json.dumps would make anew each time


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """Do the work, or cancel it when the client goes away and raise ClientGoneError.

    Returns or raises only after the work has ended, so its clean-up is done. The request's body must have been read.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """A stream of events that ends, and releases what feeds it, as soon as its client goes away."""

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None]) -> None:
        """`close` is called however the stream ends, also when it never began."""
        # The last header keeps nginx from collecting the events.
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(receive, self.stream_response(send))
        except (ClientGoneError, OSError):
            pass  # a server may also say so by failing to send
        finally:
            self._close()
