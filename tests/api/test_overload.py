"""More clients than there is room for, clients that leave, clients that do not read: real processes and sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections import Counter
from typing import Any

import httpx
import pytest

from .process import Process, process
from .server import MODEL, Executor, serve

BODY: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "ignore_eos": True}
CHAT = "/v1/chat/completions"
MIB = 2**20


async def post(port: int, body: dict[str, Any]) -> tuple[int, dict[str, str], str]:
    """Status, headers and body of an answer, on a connection of its own: httpx's pool is slow with hundreds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    content = json.dumps(body).encode()
    writer.write(
        f"POST {CHAT} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {len(content)}\r\n\r\n".encode()
    )
    writer.write(content)
    answer = (await reader.read()).decode()
    writer.close()
    head, _, rest = answer.partition("\r\n\r\n")
    first, *lines = head.split("\r\n")
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines), rest


async def storm(server: Process, clients: int, tries: int) -> tuple[Counter[int], list[float]]:
    """The statuses that clients end with, and the seconds that each of their requests took."""
    took: list[float] = []

    async def client(number: int) -> int:
        body = {**BODY, "max_tokens": 8 + number % 8, "stream": number % 2 == 0, "n": 1 + (number % 10 == 0)}
        body["messages"] = [{"role": "user", "content": f"{number} " * (1 + number % 20)}]
        status = 0
        for attempt in range(tries):
            began = time.monotonic()
            status, headers, text = await post(server.port, body)
            took.append(time.monotonic() - began)
            if status == 200:
                assert text.count('"finish_reason":"length"') == body["n"], text
                assert not body["stream"] or "data: [DONE]\n\n" in text
                return 200
            assert status in (429, 503), text
            assert json.loads(text)["error"]["message"]
            wait = int(headers["retry-after"])
            assert wait > 0
            if attempt + 1 < tries:
                await asyncio.sleep(wait * (0.5 + number % 7 / 7))
        return status

    return Counter(await asyncio.wait_for(asyncio.gather(*map(client, range(clients))), 200)), took


def test_five_hundred_clients_and_a_queue_of_sixty_four() -> None:
    limits = {"max_num_seqs": 16, "max_waiting": 64}
    with process(executor={"step_seconds": 0.005}, limits=limits, log_level="warning", access_log=False) as server:
        server.metrics()
        before = server.resident()
        ended, took = asyncio.run(storm(server, clients=500, tries=1))
        assert sum(ended.values()) == 500 and set(ended) == {200, 429}, ended
        assert ended[200] >= 60, ended
        server.wait_until_idle()
        # Those who come back as they are told get their answers.
        ended, more = asyncio.run(storm(server, clients=500, tries=40))
        assert ended == {200: 500}
        server.wait_until_idle()
        assert max(took + more) < 60
        assert server.most_resident() - before < 64 * MIB
        server.signal()
        code, said = server.end()
        assert code == 0 and "Traceback" not in said, said


def test_a_client_that_leaves_frees_its_sequence_within_a_step() -> None:
    """Counted in steps of the engine: the one that runs when the client leaves is the last that computes for it."""
    with serve(executor=Executor(step_seconds=0.3)) as server, httpx.Client(base_url=server.url) as client:
        for stream in (True, False):
            body = {**BODY, "max_tokens": 400, "stream": stream}
            before = server.executor.steps
            if stream:
                with client.stream("POST", CHAT, json=body) as response:
                    lines = response.iter_lines()
                    while server.executor.steps < before + 3:
                        next(lines)
                    left_at = server.executor.steps
            else:
                with pytest.raises(httpx.ReadTimeout):
                    client.post(CHAT, json=body, timeout=1.0)
                left_at = server.executor.steps
            time.sleep(1.0)
            assert server.executor.steps <= left_at + 1
            server.wait_until_idle(1)


def test_a_client_that_does_not_read_is_dropped() -> None:
    """Sixteen answers with the likeliest twenty of each token are more than all buffers on the way will hold."""
    with process(write_seconds=1.0, executor={"max_model_len": 2048, "num_pages": 16384}, access_log=True) as server:
        body = {**BODY, "max_tokens": 2000, "stream": True, "n": 16, "logprobs": True, "top_logprobs": 20}
        content = json.dumps(body).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(content)}\r\n\r\n".encode()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(30)
            client.connect(("127.0.0.1", server.port))
            client.sendall(head + content)
            assert client.recv(100).startswith(b"HTTP/1.1 200")
            server.wait_until_idle(60)
            assert 0 < server.metrics()["llmserve:generation_tokens_total"] < 16 * 2000  # it was not just quick
            assert server.metrics()["llmserve:request_success_total"] == 16
            assert server.most_resident() < 500 * MIB
            # The kernel gives up too, so that the connection is no more than its own buffers.
            until = time.monotonic() + 20
            while _connections(server):
                assert time.monotonic() < until, "the connection is still there"
                time.sleep(0.2)
        server.signal()
        code, said = server.end()
        assert code == 0 and "left=True" in said and "Traceback" not in said, said


def _connections(server: Process) -> int:
    """Connections that the server's side still has."""
    with open(f"/proc/{server.popen.pid}/net/tcp") as table:
        rows = [line.split() for line in table][1:]
    return sum(row[1].endswith(f":{server.port:04X}") and row[3] in ("01", "04", "05") for row in rows)
