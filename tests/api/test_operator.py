"""The operator's settings and view: keys, TLS, logs, metrics, and how a server ends (by a signal)."""

from __future__ import annotations

import json
import re
import signal
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import trustme

from llmserve.api.checks import api_keys, check
from llmserve.config import ServerConfig
from llmserve.errors import ConfigError

from .process import Process, process
from .server import Running, serve
from .test_requests import BODY, CHAT, error_of

SECRET = "the quick brown fox"
SLOW = {"step_seconds": 0.05}


# --- keys


def test_keys_come_from_everywhere(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nfrom-file\n\n  padded  \nfrom-config\n")
    config = ServerConfig(api_keys=("from-config",), api_keys_file=file)
    assert api_keys(config, {"LLMSERVE_API_KEYS": "from-env, another,,"}) == (
        *("from-config", "from-env", "another", "from-file", "padded"),
    )
    assert api_keys(ServerConfig(), {}) == ()


@pytest.mark.parametrize("text", [None, "", "# nothing\n\n"])
def test_a_file_without_keys_does_not_open_the_server_to_all(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "keys").write_text(text)
    with pytest.raises(ConfigError, match="api_keys_file"):
        check(ServerConfig(api_keys_file=tmp_path / "keys"))


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    with serve(api_keys=["one", "zwölf"], open_paths=["/health", "/docs"]) as running:
        yield running


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer three"}, 401),
        ({"authorization": "one"}, 401),
        ({"authorization": "Basic one"}, 401),
        ({"authorization": "Bearer"}, 401),
        ({"authorization": "Bearer   one"}, 200),
        ({"authorization": "bearer one"}, 200),
        ({"x-api-key": "one"}, 200),
        ({"x-api-key": "two"}, 401),
        ({"x-api-key": "two", "authorization": "Bearer one"}, 200),
        ({"x-api-key": ""}, 401),
        ({"x-api-key": "on"}, 401),
    ],
)
def test_keys(locked: Running, headers: dict[str, str], status: int) -> None:
    response = locked.post(CHAT, BODY, headers=headers)
    assert response.status_code == status
    if status == 401:
        assert error_of(response, 401)["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"


def test_a_key_that_is_not_ascii(locked: Running) -> None:
    assert locked.http.post(CHAT, json=BODY, headers=[(b"x-api-key", "zwölf".encode())]).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/docs", "/", "/page.js", "/page.css"])
def test_what_is_open(locked: Running, path: str) -> None:
    assert locked.get(path).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/metrics", "/openapi.json", "/version", "/v1/models", "/redoc", "/load", "/nothing", "//health", "/health/"],
)
def test_what_is_not_open(locked: Running, path: str) -> None:
    assert locked.http.get(locked.url + path).status_code == 401
    assert locked.http.get(locked.url + path, headers={"x-api-key": "one"}).status_code in (200, 404)


def test_every_place_is_locked_unless_it_is_named(locked: Running) -> None:
    document = locked.get("/openapi.json", headers={"x-api-key": "one"}).json()
    for path, methods in document["paths"].items():
        for method in methods:
            status = locked.http.request(method, path.replace("{name}", "x")).status_code
            assert status == (200 if path in ("/health", "/") else 401), path


def test_cors() -> None:
    with serve(cors_origins=["https://a.example"], api_keys=["k"]) as server:
        origin = {"origin": "https://a.example"}
        response = server.get("/v1/models", headers={**origin, "authorization": "Bearer k"})
        assert response.headers["access-control-allow-origin"] == "https://a.example"
        assert "x-request-id" in response.headers["access-control-expose-headers"]
        refused = server.get("/v1/models", headers=origin)
        assert refused.status_code == 401 and "access-control-allow-origin" in refused.headers
        asked = {**origin, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        assert server.http.options(CHAT, headers=asked).status_code == 200
        assert server.http.options(CHAT, headers={**asked, "origin": "https://b.example"}).status_code == 400
        other = server.get("/health", headers={"origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers


# --- TLS


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with cert.pem and key.pem of 127.0.0.1, and ca.pem, which vouches for it."""
    directory = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    own = authority.issue_cert("127.0.0.1", "localhost")
    own.private_key_pem.write_to_path(directory / "key.pem")
    own.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    authority.cert_pem.write_to_path(directory / "ca.pem")
    return directory


def test_tls(tls: Path) -> None:
    files = {"ssl_certfile": tls / "cert.pem", "ssl_keyfile": tls / "key.pem"}
    with process(**files, log_level="warning") as server:
        context = ssl.create_default_context(cafile=tls / "ca.pem")
        with httpx.Client(verify=context, base_url=server.url) as http:
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", http_client=http)
            assert client.chat.completions.create(**BODY).choices
        with pytest.raises(httpx.ConnectError, match=r"(?i)certificate"):
            httpx.get(server.url + "/health")
        with pytest.raises(httpx.TransportError):
            httpx.get(server.url.replace("https", "http") + "/health")
        server.signal()
        assert server.end()[0] == 0


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"ssl_keyfile": "key.pem"}, "needs ssl_certfile"),
        ({"ssl_certfile": "gone.pem"}, r"gone\.pem"),
        ({"ssl_certfile": "cert.pem"}, "cannot be used"),
        ({"ssl_certfile": "key.pem", "ssl_keyfile": "key.pem"}, "cannot be used"),
    ],
)
def test_certificates_that_cannot_be_used_are_named(tls: Path, files: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check(ServerConfig.model_validate({setting: tls / name for setting, name in files.items()}))


# --- logs


def lines_of(said: str) -> list[str]:
    return [line for line in said.splitlines() if "/v1/" in line]


def talk(server: Process) -> None:
    body = {**BODY, "messages": [{"role": "user", "content": SECRET}], "user": SECRET, "max_tokens": 4}
    body |= {"ignore_eos": True}
    for stream in (False, True):
        httpx.post(server.url + CHAT, json={**body, "stream": stream}, headers={"x-request-id": f"mine-{stream}"})
    httpx.post(server.url + CHAT, json={**body, "temperature": SECRET})
    httpx.get(server.url + "/v1/models/none%0Asuch?secret=" + SECRET.replace(" ", "+"))


def test_the_access_log_has_a_line_for_each_request_and_nothing_of_what_it_says() -> None:
    with process() as server:
        talk(server)
        server.signal()
        code, said = server.end()
    assert code == 0
    lines = lines_of(said)
    assert len(lines) == 4, said
    for line, name in zip(lines, ("False", "True"), strict=False):
        figures = r"200 in=\d+ cached=\d+ out=4 queued=[\d.]+ first=[\d.]+ total=[\d.]+$"
        assert re.search(rf"INFO \[mine-{name}\] 127\.0\.0\.1 POST {CHAT} {figures}", line), line
    assert re.search(rf'POST {CHAT} 400 total=[\d.]+ reason="temperature: Input should be', lines[2])
    assert "GET /v1/models/none%0Asuch 404" in lines[3]
    assert "fox" not in said


def test_the_access_log_says_why_something_was_refused() -> None:
    with process(api_keys=["k"], max_body_bytes=2000) as server:
        ask = {"headers": {"authorization": "Bearer k"}}
        for body in ({"messages": []}, {**BODY, "model": "none"}, {**BODY, "n": "x"}, {**BODY, "user": "x" * 3000}):
            httpx.post(server.url + CHAT, json=body, **ask)
        httpx.post(server.url + CHAT, json=BODY)
        httpx.post(server.url + CHAT, content=b'{"a": NaN}', **ask)
        httpx.put(server.url + CHAT, json=BODY, **ask)
        httpx.post(server.url + "/v1/messages", json={"messages": []}, **ask)
        httpx.post(server.url + CHAT, json={**BODY, "tool_choice": "a\nb" + "c" * 500}, **ask)
        httpx.post(server.url + CHAT, json=BODY, **ask)
        server.signal()
        said = server.end()[1]
    lines = [line.partition(" 127.0.0.1 ")[2] for line in said.splitlines() if " 127.0.0.1 " in line]
    reasons = [line.partition(" reason=")[2] for line in lines if "/version" not in line]
    words = (
        "messages must hold",
        "'none' is not served",
        "n: Input",
        "larger than 2000",
        "API key is missing",
        "NaN is no",
    )
    for reason, word in zip(
        reasons, (*words, "Method Not Allowed", "max_tokens is required", "tool_choice"), strict=False
    ):
        assert word in json.loads(reason) and len(json.loads(reason)) <= 200, reasons
    assert len(reasons) == 10 and reasons[-1] == ""


def test_the_access_log_in_json() -> None:
    with process(log_format="json", log_level="debug") as server:
        talk(server)
        server.signal()
        code, said = server.end()
    assert code == 0 and "fox" not in said
    lines = [json.loads(line) for line in said.splitlines()]
    assert all(line.keys() >= {"time", "level", "logger", "request_id"} for line in lines)
    access = [line for line in lines if line["logger"] == "llmserve.access" and line["path"].startswith("/v1")]
    assert [line["status"] for line in access] == [200, 200, 400, 404]
    assert ["reason" in line for line in access] == [False, False, True, True]
    first = access[0]
    assert first["id"] == first["request_id"] == "mine-False" and first["method"] == "POST"
    assert (first["out"], first["client"]) == (4, "127.0.0.1") and 0 < first["first"] <= first["total"]
    # What is logged while a request is served bears its id.
    refusal = next(
        line for line in lines if line["logger"] == "llmserve.api.edge.errors" and "temperature" in str(line)
    )
    assert refusal["request_id"] == access[2]["id"]


def test_the_access_log_can_be_off_and_alone() -> None:
    for settings, expected in (({"access_log": False}, 0), ({"log_level": "error"}, 4)):
        with process(**settings) as server:
            talk(server)
            server.signal()
            said = server.end()[1]
        assert len(lines_of(said)) == expected, said


# --- metrics

HISTOGRAMS = (
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "time_per_output_token_seconds",
    "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "request_inference_time_seconds",
    "request_prompt_tokens",
    "request_generation_tokens",
    "request_params_max_tokens",
    "request_params_n",
)


def test_metrics() -> None:
    with process(executor=SLOW, limits={"max_num_seqs": 1}) as server:
        began = time.monotonic()
        threads = [
            threading.Thread(target=httpx.post, args=(server.url + CHAT,), kwargs={"json": body, "timeout": 30})
            for body in [{**BODY, "max_tokens": 10, "ignore_eos": True}] * 2
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        whole = time.monotonic() - began
        found = server.metrics()
    for name in HISTOGRAMS:
        count = found[f"llmserve:{name}_count"]
        assert count == (18 if name in ("inter_token_latency_seconds", "time_per_output_token_seconds") else 2), name
        assert found[f"llmserve:{name}_sum"] >= 0
    queued, prefill, decode, total = (
        found[f"llmserve:{name}_seconds_sum"]
        for name in ("request_queue_time", "request_prefill_time", "request_decode_time", "e2e_request_latency")
    )
    assert queued + prefill + decode == pytest.approx(total, abs=0.05)
    # Each takes 10 steps of 0.05 s; one of the two waits for the other.
    assert 0.45 <= queued < whole and 0.9 <= decode < 1.0 * whole and prefill >= 0.1
    assert found["llmserve:request_generation_tokens_sum"] == 20 == found["llmserve:request_params_max_tokens_sum"]
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert found[f"llmserve:{name}"] == 0
    for name in ("request_success", "prompt_tokens", "generation_tokens", "num_preemptions", "prefix_cache_queries"):
        assert f"llmserve:{name}_total" in found
    assert "llmserve:prefix_cache_hits_total" in found


def test_answers_are_counted_by_place_and_status() -> None:
    with serve() as server:
        server.post(CHAT, BODY)
        server.post(CHAT, {})
        for number in range(3):  # unknown places must not become labels
            server.get(f"/v1/nothing/{number}")
        server.get("/v1/models/none/such")
        text = server.get("/metrics").text
    counted = dict(re.findall(r"^llmserve:http_requests_total\{(route=.*)\} (\S+)$", text, re.MULTILINE))
    assert counted[f'route="{CHAT}",status="200"'] == counted[f'route="{CHAT}",status="400"'] == "1.0"
    assert counted['route="none",status="404"'] == "3.0"
    assert not any("such" in labels for labels in counted)


# --- the end


def stream(server: Process, tokens: int, news: list[str]) -> threading.Thread:
    """A client that reads a stream in a thread of its own; returns when the first line has come."""
    begun = threading.Event()

    def read() -> None:
        body = {**BODY, "max_tokens": tokens, "stream": True, "ignore_eos": True}
        with httpx.stream("POST", server.url + CHAT, json=body, timeout=30) as response:
            for line in response.iter_lines():
                begun.set()
                news.append(line)

    thread = threading.Thread(target=read)
    thread.start()
    assert begun.wait(10)
    return thread


def test_a_drain_lets_open_streams_end_and_nobody_else_in() -> None:
    with process(executor=SLOW) as server, httpx.Client(base_url=server.url) as client:
        news: list[str] = []
        reading = stream(server, 40, news)
        assert client.get("/health").status_code == 200
        server.signal()
        time.sleep(0.3)
        for ask in (lambda: httpx.post(server.url + CHAT, json=BODY), lambda: client.get("/health")):
            refused: httpx.Response = ask()
            assert "shutting down" in error_of(refused, 503)["message"]
            assert int(refused.headers["retry-after"]) > 0 and refused.headers["connection"] == "close"
        assert server.metrics()["llmserve:num_requests_running"] == 1
        code, said = server.end()
        reading.join()
    assert code == 0 and "Traceback" not in said, said
    assert '"finish_reason":"length"' in "".join(news) and "data: [DONE]" in news
    assert '"error"' not in "".join(news)


def test_a_drain_ends_in_time() -> None:
    with process(executor=SLOW, drain_seconds=0.5) as server:
        news: list[str] = []
        reading = stream(server, 400, news)
        server.signal()
        began = time.monotonic()
        code, said = server.end()
        reading.join()
    assert code == 0 and "cut off" in said and "Traceback" not in said, said
    assert 0.4 < time.monotonic() - began < 5
    assert "shutting down" in next(line for line in news if '"error"' in line) and "data: [DONE]" in news


def test_a_second_signal_does_not_wait() -> None:
    with process(executor=SLOW, drain_seconds=30.0) as server:
        news: list[str] = []
        reading = stream(server, 400, news)
        server.signal(signal.SIGINT)
        time.sleep(0.3)
        began = time.monotonic()
        server.signal(signal.SIGINT)
        code, said = server.end()
        reading.join()
    assert code == 0 and "Traceback" not in said, said
    assert time.monotonic() - began < 5 and any('"error"' in line for line in news)


def test_an_idle_server_ends_at_once() -> None:
    with process() as server, httpx.Client(base_url=server.url) as client:
        client.get("/health")  # a connection that is kept open
        began = time.monotonic()
        server.signal()
        assert server.end()[0] == 0
        assert time.monotonic() - began < 3
