"""The server process: sockets, logs, and an orderly end when a signal comes."""

from __future__ import annotations

import asyncio
import logging
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from ..config import ServerConfig
from ..errors import EngineError
from .base.state import Serving
from .checks import check
from .edge import logs
from .edge.connection import limited

logger = logging.getLogger(__name__)

_CUT_OFF_SECONDS = 5.0  # for answers that are cut off, to send their error


def run(app: FastAPI, config: ServerConfig) -> None:
    """Serve until a signal comes. Returns when the last answer has been sent, or has been cut off.

    A first SIGTERM or SIGINT turns new requests away with status 503 and gives the open ones `drain_seconds`; a second
    one cuts them off. Raises EngineError when the engine has died, once all who asked have been told: whoever watches
    over the process can then start another.
    """
    check(config)
    settings = uvicorn.Config(
        app,
        host=config.host,
        port=config.port,
        http=limited(config.idle_seconds, config.header_seconds),  # of h11, which bounds the size of headers
        log_config=logs.settings(config.log_level, config.log_format, config.access_log),
        access_log=False,  # ours has tokens in it
        server_header=False,
        ssl_certfile=config.ssl_certfile,
        ssl_keyfile=config.ssl_keyfile,
        timeout_graceful_shutdown=round(_CUT_OFF_SECONDS),
    )
    listening = settings.bind_socket()
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # the kernel, too, gives up on clients that read nothing
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(config.write_seconds * 1000))
    server = Server(settings, app.state.serving)
    server.run([listening])
    if server.death is not None:
        raise EngineError(server.death)


class Server(uvicorn.Server):
    """A server that goes on listening while it drains, so that it can refuse new requests in words.

    Attributes:
        death: why the engine has died, if it has.
    """

    def __init__(self, config: uvicorn.Config, serving: Serving) -> None:
        super().__init__(config)
        self._serving = serving
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        self.death: str | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)  # with it, the engine is there
        self._watching = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        """End the process after its engine: nothing it could still do is worth its place."""
        self.death = await self._serving.engine.death()
        logger.critical("%s The server ends, so that another can be started.", self.death)
        await self._serving.gate.drain(_CUT_OFF_SECONDS)  # the open requests have been told, and say so
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal has come. It is not passed on afterwards: an orderly end is no failure."""
        if self._loop is None or not self.started:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())
        else:
            self._draining.cancel()

    async def _drain(self) -> None:
        gate, seconds = self._serving.gate, self._serving.config.drain_seconds
        logger.info("Shutting down: %d requests are open and have %g seconds.", gate.open_requests, seconds)
        try:
            drained = await gate.drain(seconds)
        except asyncio.CancelledError:
            drained = False
        if not drained:
            logger.warning("Shutting down: %d requests are cut off.", gate.open_requests)
            await self._serving.engine.stop()  # which ends their streams with an error
            await gate.drain(_CUT_OFF_SECONDS)
        self.should_exit = True
