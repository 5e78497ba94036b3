"""From an app to a process that listens: sockets, TLS, logs, keys, and an orderly end when a signal comes."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Mapping
from types import FrameType

import uvicorn
from fastapi import FastAPI

from ..config import ServerConfig
from ..errors import ConfigError
from . import logs, tracing
from .state import Serving

logger = logging.getLogger(__name__)

KEYS_VARIABLE = "LLMSERVE_API_KEYS"
_LAST_WORDS_SECONDS = 5.0  # for answers that were cut off to say so


def api_keys(config: ServerConfig, environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The keys of the settings, of `api_keys_file` and of LLMSERVE_API_KEYS together. Raises ConfigError.

    The file has one key a line, and comments after `#` at a line's beginning; the variable's are separated by commas.
    """
    keys = [*config.api_keys, *environment.get(KEYS_VARIABLE, "").split(",")]
    if config.api_keys_file is not None:
        try:
            lines = config.api_keys_file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"api_keys_file {config.api_keys_file} cannot be read: {error}.") from error
        found = [line for line in map(str.strip, lines) if line and not line.startswith("#")]
        if not found:  # open to all is not what somebody meant who named a file
            raise ConfigError(f"api_keys_file {config.api_keys_file} holds no key; write one a line.")
        keys += found
    return tuple(dict.fromkeys(key.strip() for key in keys if key.strip()))


def check(config: ServerConfig) -> None:
    """Raise ConfigError for what cannot be used (keys, certificates, an extra), before anything expensive is done."""
    api_keys(config)
    if config.otlp_endpoint is not None:
        tracing.require()
    if config.ssl_keyfile is not None and config.ssl_certfile is None:
        raise ConfigError("ssl_keyfile needs ssl_certfile beside it.")
    if config.ssl_certfile is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                config.ssl_certfile, config.ssl_keyfile, _no_password
            )
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise ConfigError(f"ssl_certfile {config.ssl_certfile} and its key cannot be used: {error}.") from error


def run(app: FastAPI, config: ServerConfig) -> None:
    """Serve until a signal comes. Returns when the last answer has been sent, or has been cut off.

    A first SIGTERM or SIGINT turns new requests away with status 503 and gives the open ones `drain_seconds`; a second
    one cuts them off.
    """
    check(config)
    settings = uvicorn.Config(
        app,
        host=config.host,
        port=config.port,
        http="h11",  # whatever else is installed: it bounds the size of headers
        log_config=logs.settings(config.log_level, config.log_format, config.access_log),
        access_log=False,  # ours has tokens in it
        server_header=False,
        ssl_certfile=config.ssl_certfile,
        ssl_keyfile=config.ssl_keyfile,
        timeout_graceful_shutdown=round(_LAST_WORDS_SECONDS),
    )
    listening = settings.bind_socket()
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # the kernel, too, gives up on clients that read nothing
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(config.write_seconds * 1000))
    Server(settings, app.state.serving).run([listening])


class Server(uvicorn.Server):
    """A server that goes on listening while it drains, so that it can say that it is leaving."""

    def __init__(self, config: uvicorn.Config, serving: Serving) -> None:
        super().__init__(config)
        self._serving = serving
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leaving: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal has come. It is not passed on afterwards: an orderly end is no failure."""
        if self._loop is None or not self.started:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._leave)

    def _leave(self) -> None:
        if self._leaving is None:
            self._leaving = asyncio.ensure_future(self._drain())
        else:
            self._leaving.cancel()

    async def _drain(self) -> None:
        gate, seconds = self._serving.gate, self._serving.config.drain_seconds
        logger.info("Leaving: %d requests are open and have %g seconds.", gate.open_requests, seconds)
        try:
            drained = await gate.drain(seconds)
        except asyncio.CancelledError:
            drained = False
        if not drained:
            logger.warning("Leaving: %d requests are cut off.", gate.open_requests)
            await self._serving.engine.stop()  # which ends their streams with an error
            await gate.drain(_LAST_WORDS_SECONDS)
        self.should_exit = True


def _no_password() -> str:
    raise ValueError("the key is encrypted; write it without a password, readable to the server's user alone")
