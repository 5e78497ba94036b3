"""Connections: kept for a next request, given up while their headers do not come, and HEAD wherever there is GET."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from llmserve.config import Config, ServerConfig, validated
from llmserve.errors import ConfigError

from .process import Process, process
from .server import Running
from .test_requests import BODY, CHAT

REQUEST = b"GET /version HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.fixture(scope="module")
def impatient() -> Iterator[Process]:
    with process(idle_seconds=1.0, header_seconds=0.5) as server:
        yield server


def connect(server: Process) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=5)


def answer(connection: socket.socket) -> bytes:
    """A whole answer, whose body is an object; or what has come until the server closes."""
    data = b""
    while not data.endswith(b"}") and (more := connection.recv(65536)):
        data += more
    return data


def closed_after(connection: socket.socket) -> float:
    began = time.monotonic()
    while connection.recv(65536):
        pass
    return time.monotonic() - began


def test_the_default_outlasts_clients() -> None:
    assert ServerConfig().idle_seconds >= 75 and ServerConfig().header_seconds <= 60
    for value in ("nan", "inf", 0, -1):
        with pytest.raises(ConfigError, match=r"server\.idle_seconds"):
            validated(Config, {"server": {"idle_seconds": float(value)}}, "here")


def test_an_idle_connection_is_closed_in_its_time_and_serves_until_then(impatient: Process) -> None:
    with connect(impatient) as connection:
        for _ in range(3):
            connection.sendall(REQUEST)
            assert b" 200 " in answer(connection)
            time.sleep(0.6)  # longer than headers may take
        assert closed_after(connection) < 2
    with connect(impatient) as silent:
        assert 0.5 < closed_after(silent) < 3


@pytest.mark.parametrize(
    "beginning",
    [
        b"G",
        b"GET",
        b"GET / HTTP/1.1\r\n",
        REQUEST[:-2],
        b"POST /v1/chat/completions HTTP/1.1\r\nx: ",
        b"POST / HTTP/1.1\r\na: b\r\nc:",
    ],
)
def test_headers_that_do_not_come(impatient: Process, beginning: bytes) -> None:
    with connect(impatient) as connection:
        connection.sendall(beginning)
        began = time.monotonic()
        told = answer(connection)
        assert b" 408 " in told and 0.3 < time.monotonic() - began < 3
        error = json.loads(told.partition(b"\r\n\r\n")[2])["error"]
        assert "headers did not arrive" in error["message"] and error["type"] == "invalid_request_error"
        assert closed_after(connection) < 1


def test_headers_that_come_a_byte_at_a_time(impatient: Process) -> None:
    with connect(impatient) as connection, pytest.raises(OSError):
        for byte in REQUEST * 2:
            connection.sendall(bytes([byte]))
            time.sleep(0.05)
    with connect(impatient) as connection:  # also those of a second request
        connection.sendall(REQUEST)
        answer(connection)
        connection.sendall(REQUEST[:-2])
        assert b" 408 " in answer(connection)


def test_a_body_is_not_counted_with_the_headers(impatient: Process) -> None:
    body = json.dumps(BODY).encode()
    with connect(impatient) as connection:
        connection.sendall(b"POST %s HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % (CHAT.encode(), len(body)))
        time.sleep(0.8)
        connection.sendall(body)
        assert b" 200 " in answer(connection)


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"GET /\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b" \r\n\r\n"]
)
def test_what_is_no_http_is_refused_in_openais_shape(impatient: Process, data: bytes) -> None:
    with connect(impatient) as connection:
        connection.sendall(data)
        told = answer(connection)
    assert b" 400 " in told and json.loads(told.partition(b"\r\n\r\n")[2])["error"]["message"]


def test_a_request_that_comes_during_a_stall_is_served(impatient: Process) -> None:
    """The server stands still from before its limit to after it, and requests come meanwhile."""
    connections = [connect(impatient) for _ in range(5)]
    for connection in connections:
        connection.sendall(REQUEST)
        answer(connection)
    time.sleep(0.7)
    os.kill(impatient.popen.pid, signal.SIGSTOP)
    try:
        time.sleep(0.1)
        for connection in connections:
            connection.sendall(REQUEST)
        time.sleep(0.8)
    finally:
        os.kill(impatient.popen.pid, signal.SIGCONT)
    assert all(b" 200 " in answer(connection) for connection in connections)
    for connection in connections:
        connection.close()


def test_head_where_there_is_get(server: Running) -> None:
    paths = server.get("/openapi.json").json()["paths"]
    open_paths = [path for path, methods in paths.items() if "get" in methods and "{" not in path]
    assert len(open_paths) >= 4
    for path in [
        *open_paths,
        "/",
        "/page.js",
        "/docs",
        "/openapi.json",
        "/v1/models/tiny",
        "/v1/models/none",
        "/nothing",
    ]:
        get, head = server.get(path), server.http.head(path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        for name in ("content-type", "content-length", "etag"):
            if path != "/metrics":
                assert head.headers.get(name) == get.headers.get(name), path
    for path, methods in paths.items():
        if "get" not in methods and "{" not in path:
            refused = server.http.head(path)
            assert refused.status_code in (404, 405) and refused.content == b"", path
    assert 'route="/health"' in server.get("/metrics").text


def test_head_needs_a_key_where_get_does() -> None:
    with process(api_keys=["k"], open_paths=["/health"]) as server:
        server.headers = {"authorization": "Bearer k"}
        assert httpx.head(f"{server.url}/v1/models").status_code == 401
        assert httpx.head(f"{server.url}/v1/models", headers=server.headers).status_code == 200
        assert httpx.head(f"{server.url}/health").status_code == 200
