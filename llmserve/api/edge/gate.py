"""Admission: no request while the server drains, and no more at once than the engine can have running or waiting.

A request that the engine would refuse is refused here, before its body has been read. A draining server learns here
when the last answer has been sent.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from ...engine import AsyncEngine
from ...errors import EngineError, LLMServeError, QueueFullError
from .errors import refusal

_ALWAYS = frozenset({"/metrics", "/version"})  # answered while draining too


class RequestGate:
    """Counts open requests, and refuses new ones when full or draining."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self.open_requests = 0
        self.draining = False
        self._empty = asyncio.Event()

    def check(self, method: str, path: str) -> None:
        """Raise the error for a request that is not admitted."""
        if self.draining and path not in _ALWAYS:
            raise EngineError("The server is shutting down. Please send this to another one, or again later.")
        if method == "POST" and self._engine.is_alive and self.open_requests >= self._engine.capacity:
            raise QueueFullError(f"The server is busy: {self.open_requests} requests are open. Please try again later.")

    def enter(self) -> None:
        self.open_requests += 1
        self._empty.clear()

    def leave(self) -> None:
        self.open_requests -= 1
        if not self.open_requests:
            self._empty.set()

    async def drain(self, seconds: float) -> bool:
        """Refuse new requests and wait for the open ones; returns whether all ended in time."""
        self.draining = True
        if self.open_requests:
            try:
                await asyncio.wait_for(self._empty.wait(), seconds)
            except asyncio.TimeoutError:
                return False
        return True


class GateMiddleware:
    """The middleware that asks the gate before each request."""

    def __init__(self, app: ASGIApp, gate: RequestGate) -> None:
        self._app, self._gate = app, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            self._gate.check(scope["method"], scope["path"])
        except LLMServeError as error:
            response = refusal(scope["path"], error)
            if self._gate.draining:
                response.headers["connection"] = "close"  # the next request then goes to another server
            return await response(scope, receive, send)
        if scope["method"] != "POST":  # only POST requests take long
            return await self._app(scope, receive, send)
        self._gate.enter()
        try:
            await self._app(scope, receive, send)
        finally:
            self._gate.leave()
