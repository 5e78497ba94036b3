"""The servers that are compared: how they are started, what is said of them, and what is missing where none can be."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import llama_server
import pytest
import servers

from llmserve.bench import serve
from llmserve.compile.random_checkpoint import TINY_LLAMA, write_random_checkpoint
from llmserve.errors import LLMServeError


def test_commands_are_what_a_user_would_type() -> None:
    words = servers.ours(Path("/models/one"), 2, "q4")(9000)
    assert servers.shown(words) == "llmserve serve /models/one --quant q4 --threads 2 --port 9000"
    shown = servers.shown(servers.theirs(Path("/cache/llama-server"), Path("/cache/m.gguf"), 2, "on")(9001))
    assert shown.startswith("llama-server -m /cache/m.gguf -t 2 -tb 2 ")
    assert f" --parallel {servers.CLIENTS} " in shown and " -fa on " in shown and shown.endswith("--port 9001")


def test_a_llama_servers_context_holds_what_its_clients_ask_for() -> None:
    words = servers.theirs(Path("s"), Path("m"), 1, "off")(1)
    assert int(words[words.index("-c") + 1]) >= servers.CLIENTS * (servers.PROMPT + servers.ANSWER)


def test_a_start_is_timed_and_the_server_gone_after_it(tmp_path: Path) -> None:
    checkpoint = write_random_checkpoint(tmp_path / "tiny", TINY_LLAMA)
    ports: list[int] = []

    def command(port: int) -> list[str]:
        ports.append(port)
        return servers.ours(checkpoint, 1, "q4")(port)

    assert servers.starting(command)()["ready_seconds"] > 0
    assert not serve._healthy(ports[0])


def test_no_prompt_is_asked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []

    def request(url: str, model: str, prompt: list[int], max_tokens: int) -> serve.Stream:
        asked.append(tuple(prompt))
        return serve.Stream(arrivals=[0.1], tokens=1)

    monkeypatch.setattr(serve, "_model_name", lambda url: "any")
    monkeypatch.setattr(serve, "_request", request)
    for _ in range(2):
        assert serve.load("http://any", 3, 16, 4)["requests"] == 3 * serve.REQUESTS
    assert len(asked) == len(set(asked)) == 2 * (1 + 3 * serve.REQUESTS)


def test_the_peak_and_its_part_from_files() -> None:
    found = servers.Server("us", "", os.getpid(), "").memory()
    assert found["peak_rss_mib"] >= found["rss_mib"] > found["file_mib"] > 0


def test_a_compilation_that_fails_is_no_figure() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('the compiler is ill')"]
    with pytest.raises(LLMServeError, match="the compiler is ill"):
        servers.cold_compile_seconds(command)


def test_a_compilation_has_the_weights_and_no_library() -> None:
    look = "import os; p = os.environ['LLMSERVE_CACHE']; assert sorted(os.listdir(p)) == ['params', 'weights']"
    assert servers.cold_compile_seconds([sys.executable, "-c", look])["compile_seconds"] > 0


def test_the_peers_server_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_server, "PACKAGE", "no-such-package-as-this")
    with pytest.raises(LLMServeError, match=r"is not installed.*llmserve\[bench\]"):
        llama_server.build(1)


def test_a_build_needs_its_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_server, "version", lambda: "0.0")
    monkeypatch.setattr(llama_server.shutil, "which", lambda tool: None)
    assert llama_server.binary() is None
    with pytest.raises(LLMServeError, match="no cmake"):
        llama_server.build(1)
