"""Spans: one for each request to the model, in the conventions' words, and no library loaded by who wants none."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from llmserve.api.checks import check
from llmserve.api.edge import tracing
from llmserve.config import ServerConfig
from llmserve.errors import ConfigError

from .server import MODEL, serve
from .test_requests import BODY, CHAT, TEXT

ENDPOINT = "http://127.0.0.1:9/v1/traces"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    keeping = InMemorySpanExporter()
    monkeypatch.setattr(tracing, "make_exporter", lambda endpoint: keeping)
    return keeping


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_a_span_for_each_request(exporter: InMemorySpanExporter) -> None:
    secret = "the quick brown fox"
    messages = [{"role": "user", "content": secret}]
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    body = {**BODY, "messages": messages, "max_tokens": 3, "ignore_eos": True, "seed": 7, "temperature": 0.5}
    with serve(otlp_endpoint=ENDPOINT) as server:
        before = time.time_ns()
        traced = {"traceparent": f"00-{trace_id}-{span_id}-01", "x-request-id": "mine"}
        server.post(CHAT, {**body, "stream": True}, headers=traced)
        server.post(TEXT, {"prompt": secret, "max_tokens": 2, "n": 2, "ignore_eos": True, "seed": 2**70})
        server.post(CHAT, {**body, "temperature": secret})
        server.post("/v1/nothing", {})
        server.get("/health")
        server.get("/v1/models")
        after = time.time_ns()
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == [f"chat {MODEL}", f"text_completion {MODEL}", f"chat {MODEL}", "POST"]
    chat, text, mistaken, nothing = spans
    assert all(span.kind is SpanKind.SERVER and before <= span.start_time <= span.end_time <= after for span in spans)

    found = attributes(chat)
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "llmserve",
        "gen_ai.request.model": MODEL,
        "gen_ai.response.model": MODEL,
        "gen_ai.request.max_tokens": 3,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 7,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.response.finish_reasons": ("length",),
        "http.request.method": "POST",
        "http.route": CHAT,
        "url.path": CHAT,
        "http.response.status_code": 200,
        "llmserve.request.id": "mine",
    }
    assert found.items() >= expected.items()
    assert found["gen_ai.usage.input_tokens"] > len(secret)
    assert 0 <= found["gen_ai.latency.time_in_queue"] <= found["gen_ai.latency.time_to_first_token"]
    assert chat.context.trace_id == int(trace_id, 16) and chat.parent and chat.parent.span_id == int(span_id, 16)
    assert chat.resource.attributes["service.name"] == "llmserve"

    found = attributes(text)
    assert (found["gen_ai.request.choice.count"], found["gen_ai.usage.output_tokens"]) == (2, 4)
    assert text.parent is None and "gen_ai.request.seed" not in found  # which is more than the protocol holds
    assert attributes(mistaken)["error.type"] == "400" and "gen_ai.usage.input_tokens" not in attributes(mistaken)
    assert attributes(nothing)["http.response.status_code"] == 404
    assert all(span.status.status_code is StatusCode.UNSET for span in spans)
    assert all("fox" not in span.to_json() for span in spans)


def test_spans_reach_a_collector() -> None:
    """Over HTTP, as the protocol has it, to a collector that is a socket; and none is needed for the server to end."""
    with socket.create_server(("127.0.0.1", 0)) as collector:
        collector.settimeout(10)
        received: list[bytes] = []

        def collect() -> None:
            connection, _ = collector.accept()
            with connection:
                received.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

        thread = threading.Thread(target=collect)
        thread.start()
        with serve(otlp_endpoint=f"http://127.0.0.1:{collector.getsockname()[1]}/v1/traces") as server:
            server.post(CHAT, BODY)
        thread.join(10)
    assert received and received[0].startswith(b"POST /v1/traces HTTP/1.1")


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    with pytest.raises(ConfigError, match=r"llmserve\[otel\]"):
        check(ServerConfig(otlp_endpoint=ENDPOINT))


def test_nothing_is_loaded_unless_it_is_wanted() -> None:
    # FastAPI looks for the bare API of OpenTelemetry itself, if that is installed.
    code = "import sys; from tests.api.server import Executor, build; build(Executor()); "
    code += "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
