"""One client's connection: how long it may be idle, how long its headers may take, and refusals in OpenAI's shape.

uvicorn's protocol does the rest; it knows one time limit, that between two requests.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import h11
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.h11_impl import H11Protocol

from .errors import refusal

_LAST_LOOK_SECONDS = 0.05


class Connection(H11Protocol):
    """A subclass says the limits; `limited` makes it.

    Attributes:
        idle_seconds: until the first byte of a request, the first or the next.
        header_seconds: from there to the end of its headers.
    """

    idle_seconds = 75.0
    header_seconds = 20.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.timeout_keep_alive = self.idle_seconds  # type: ignore[assignment]  # fractions will do
        self._headers_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(self.idle_seconds, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        served = self.cycle
        if self._headers_due is None and (served is None or served.response_complete):
            self._headers_due = self.loop.call_later(self.header_seconds, self._too_slow)
        super().data_received(data)
        if self.cycle is not served:  # the headers are complete
            self._forget_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_headers()
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        """Look once more before closing: after a stall, timers come before what has arrived meanwhile."""
        self.timeout_keep_alive_task = self.loop.call_later(_LAST_LOOK_SECONDS, super().timeout_keep_alive_handler)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def _too_slow(self) -> None:
        self._headers_due = None
        if not self.transport.is_closing():
            self._refuse(408, f"The request's headers did not arrive within {self.header_seconds:g} seconds.")

    def _refuse(self, status: int, message: str) -> None:
        """Answer what has not become a request, and close."""
        self._forget_headers()
        response = refusal("", HTTPException(status, message, {"connection": "close"}))
        told = h11.Response(status_code=status, headers=response.raw_headers, reason=HTTPStatus(status).phrase.encode())
        for event in (told, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _forget_headers(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None


def limited(idle_seconds: float, header_seconds: float) -> type[Connection]:
    """A `Connection` with these limits, for uvicorn to make as many of as it likes."""
    return type("Connection", (Connection,), {"idle_seconds": idle_seconds, "header_seconds": header_seconds})
