"""A server under streaming clients: throughput, time to the first token, gaps between tokens, memory, failures.

Starts `llmserve serve` as users do, or takes the URL of any server that speaks the OpenAI API. Clients are threads over
http.client, which costs the measured machine little and needs no package. Not a load generator for many machines.
"""

from __future__ import annotations

import http.client
import json
import random
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from ..errors import LLMServeError
from .host import LLMSERVE, load_average, memory_mib, options, prepare, provenance

READY_SECONDS = 1800
REQUESTS = 2  # per client: the second meets a server in full swing
_BYTES = range(10, 250)  # token ids that every vocabulary has, whatever its size


@dataclass
class Stream:
    """One request as its client saw it: seconds, counted from sending."""

    arrivals: list[float] = field(default_factory=list)
    tokens: int = 0
    error: str | None = None

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.arrivals, self.arrivals[1:], strict=False)]


def measure(
    model: str | None,
    quant: str | None = None,
    clients: int = 8,
    prompt_tokens: int = 128,
    max_tokens: int = 32,
    url: str | None = None,
) -> dict[str, Any]:
    """Figures by name, in the order in which to print them. Raises LLMServeError when there is no server to ask, or
    when not one request succeeded."""
    figures = {"model": model or "-", **provenance(), "clients": clients}
    figures |= {"prompt_tokens": prompt_tokens, "max_tokens": max_tokens}
    if url is not None:
        figures["url"] = url
        return figures | load(url, clients, prompt_tokens, max_tokens) | {"load_average_after": load_average()}
    prepare(model, quant=quant)
    port = free_port()
    with running(command(model, quant=quant, port=port), port) as (address, process, ready):
        figures["ready_seconds"] = ready
        figures |= load(address, clients, prompt_tokens, max_tokens)
        figures |= {f"server_{name}": value for name, value in memory_mib(process.pid).items()}
    return figures | {"load_average_after": load_average()}


def command(model: str | None, **settings: Any) -> list[str]:
    """The command line that serves a model, as users type it. `settings` are options of `llmserve serve`."""
    return [*LLMSERVE, "serve", *([model] if model is not None else []), *options(**settings)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[str], port: int) -> Iterator[tuple[str, subprocess.Popen[bytes], float]]:
    """(url, process, seconds until it was ready) of a server that stops when the block ends, however it ends.

    `command` starts it on `port` of 127.0.0.1, and it is ready when GET /health says so.
    """
    with tempfile.TemporaryFile() as log:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            while not _healthy(port):
                if process.poll() is not None or time.perf_counter() - began > READY_SECONDS:
                    log.seek(0)
                    last = log.read().decode(errors="replace").strip().splitlines()[-1:]
                    raise LLMServeError(f"The server did not start: {''.join(last) or process.returncode}")
                time.sleep(0.02)
            yield f"http://127.0.0.1:{port}", process, time.perf_counter() - began
        finally:
            process.send_signal(signal.SIGCONT)  # it may be stopped
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def load(url: str, clients: int, prompt_tokens: int, max_tokens: int) -> dict[str, Any]:
    """Run all clients to their end and sum up. Raises LLMServeError when not one request was answered with text.

    No prompt was ever asked before, by this load or another: a server that remembers prompts would answer it at once.
    """
    name, rng = _model_name(url), random.Random()
    prompts = [[rng.choices(_BYTES, k=prompt_tokens) for _ in range(REQUESTS)] for _ in range(clients)]
    _request(url, name, rng.choices(_BYTES, k=8), 2)  # what a first request pays is not measured
    streams: list[Stream] = []
    begin = threading.Barrier(clients + 1)

    def client(number: int) -> None:
        begin.wait()
        for prompt in prompts[number]:
            streams.append(_request(url, name, prompt, max_tokens))

    threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    begin.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    good = [stream for stream in streams if stream.error is None]
    if not good:
        raise LLMServeError(f"No request succeeded; the first said: {streams[0].error}")
    # Tokens need not spell anything, so a stream of some may have shown none.
    shown = [stream for stream in good if stream.arrivals]
    if not shown:
        raise LLMServeError("No request was answered with any text.")
    firsts, gaps = [stream.arrivals[0] for stream in shown], [gap for stream in shown for gap in stream.gaps]
    return {
        "requests": len(streams),
        "requests_failed": len(streams) - len(good),
        "seconds": seconds,
        "output_tok_s": sum(stream.tokens for stream in good) / seconds,
        "first_token_median_ms": median(firsts) * 1e3,
        "first_token_p95_ms": _p95(firsts) * 1e3,
        # Tokens that complete no character yet come with the next one, so a gap may hold several.
        "gap_median_ms": median(gaps) * 1e3 if gaps else 0.0,
        "gap_p95_ms": _p95(gaps) * 1e3 if gaps else 0.0,
        "per_token_median_ms": median(s.arrivals[-1] - s.arrivals[0] for s in shown) / max(1, max_tokens - 1) * 1e3,
    }


def _p95(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.95 * len(values)))]


def _model_name(url: str) -> str:
    connection = _connection(url)
    try:
        connection.request("GET", _path(url, "/models"))
        return str(json.load(connection.getresponse())["data"][0]["id"])
    except (OSError, ValueError, KeyError, IndexError, TypeError, http.client.HTTPException) as error:
        raise LLMServeError(f"{url} does not list its models as an OpenAI-compatible server does: {error}.") from error
    finally:
        connection.close()


def _request(url: str, model: str, prompt: list[int], max_tokens: int) -> Stream:
    """Stream one completion. A failure of any kind is in the result."""
    body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    stream, connection = Stream(), _connection(url)
    sent = time.perf_counter()
    try:
        connection.request("POST", _path(url, "/completions"), json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            stream.error = f"{response.status} {response.read(300).decode(errors='replace')}"
            return stream
        for line in response:
            if line.startswith(b"data: {"):
                _note(stream, json.loads(line[6:]), time.perf_counter() - sent)
        if stream.error is None and not stream.tokens:
            stream.error = "the stream ended without a token"
    except (OSError, ValueError, http.client.HTTPException) as error:
        stream.error = f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    return stream


def _note(stream: Stream, event: dict[str, Any], now: float) -> None:
    if "error" in event:
        stream.error = str(event["error"])
    if any(choice.get("text") for choice in event.get("choices") or ()):
        stream.arrivals.append(now)
        stream.tokens += 1
    if usage := event.get("usage"):
        stream.tokens = int(usage["completion_tokens"])


def _connection(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname or "127.0.0.1", parts.port, timeout=600)


def _path(url: str, endpoint: str) -> str:
    """The endpoint's path below `url`, which may or may not name /v1 itself."""
    base = urlsplit(url).path.rstrip("/")
    return f"{base.removesuffix('/v1')}/v1{endpoint}"
