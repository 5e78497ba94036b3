"""The vendors' clients for Node, against a server whose model is scripted.

`make clients` installs them; without them, or without Node, there is nothing to run.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from .server import Executor, serve

HERE = Path(__file__).parent / "node"
CHECKS = 13


def script(prompt: str) -> str:
    if "<|im_start|>tool" in prompt:
        return "Rain it is."
    if "user\nWeather" in prompt:
        return '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    return "Hello, wörld."


@pytest.mark.skipif(
    not (HERE / "node_modules").is_dir(), reason="clients for Node: they are not installed (make clients)"
)
@pytest.mark.skipif(
    shutil.which("node") is None, reason="clients for Node: no Node is installed (apt install nodejs npm)"
)
def test_node_clients() -> None:
    with serve(executor=Executor(script=script, max_model_len=2048, num_pages=2048)) as server:
        run = subprocess.run(
            ["node", "conformance.mjs", server.url], cwd=HERE, capture_output=True, text=True, timeout=120
        )
        assert run.returncode == 0, run.stdout + run.stderr
        assert run.stdout.count("ok: ") == CHECKS, run.stdout
        server.wait_until_idle()
