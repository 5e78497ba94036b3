"""OpenAI's library for Node at the other end, installed with npm into a temporary directory."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .server import MODEL, Executor, serve

SCRIPT = Path(__file__).with_name("openai_node.mjs")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the library and the script."""
    if not shutil.which("node") or not (npm := shutil.which("npm")):
        pytest.skip("node and npm are not installed")
    directory = tmp_path_factory.mktemp("node")
    shutil.copy(SCRIPT, directory)
    install = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock", "--prefix", str(directory), "openai@>=5"]
    try:
        done = subprocess.run(install, cwd=directory, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip("npm could not install openai within two minutes")
    if done.returncode:
        pytest.skip(f"npm could not install openai: {done.stderr.strip()[-300:]}")
    return directory


def test_the_node_library(directory: Path) -> None:
    def script(prompt: str) -> str:
        if "<tools>" not in prompt:
            return "Hello, world."
        call = '<tool_call>\n{"name": "clock", "arguments": {"zone": "CET"}}\n</tool_call>'
        return "It is twelve." if "twelve" in prompt else f"See.\n{call}"

    with serve(executor=Executor(script=script, max_model_len=1024)) as server:
        node = ["node", str(directory / SCRIPT.name), f"{server.url}/v1", MODEL]
        done = subprocess.run(node, cwd=directory, capture_output=True, text=True, timeout=60)
        server.wait_until_idle()
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(done.stdout)
    for name in ("whole", "final"):
        choice = results[name]
        assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] == "See."
        (call,) = choice["message"]["tool_calls"]
        assert call["id"] and call["type"] == "function"
        assert (call["function"]["name"], call["function"]["arguments"]) == ("clock", '{"zone": "CET"}')
    assert results["argumentDeltas"] > 3
    assert results["text"] == "Hello, world."
    assert results["usage"]["completion_tokens"] > results["streamedUsage"]["completion_tokens"] > 0
    assert results["afterTools"] == "It is twelve."
    assert results["badRequest"]["kind"] == "BadRequestError" and results["badRequest"]["param"] == "top_p"
    assert "top_p" in results["badRequest"]["message"]
    assert results["notFound"]["kind"] == "NotFoundError" and results["notFound"]["status"] == 404
    assert results["models"] == [MODEL, "tiny"]
