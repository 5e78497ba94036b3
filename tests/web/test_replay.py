"""The page that runs recorded kernels, in a headless Chromium with its software WebGPU."""

from __future__ import annotations

import functools
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm

from llmserve import backends
from llmserve.backends.recording import DATA_FILE, RECORDING_FILE, record
from llmserve.errors import UnsupportedError

from ..api.browser import Browser, chromium
from ..backends import kernels
from ..backends.conftest import build, webgpu  # noqa: F401  # fixtures

WEB = Path(__file__).parents[2] / "web"
Build = Callable[[tvm.tirx.PrimFunc], tvm.runtime.Module]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A folder whose files change from test to test."""

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A copy of the page's folder, and its address. Browsers have WebGPU on localhost and where there is TLS."""
    folder = tmp_path_factory.mktemp("web")
    for file in WEB.glob("*.*"):
        shutil.copy(file, folder)
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/index.html"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium("enable-unsafe-webgpu", "use-webgpu-adapter=swiftshader") as started:
        yield started


def outcome(browser: Browser, address: str) -> tuple[str, str]:
    browser.open(address)
    browser.wait(lambda: browser.script("return document.querySelector('#status').dataset.outcome"), 60)
    return browser.script("return document.querySelector('#status').dataset.outcome"), browser.text("#status")


@pytest.fixture
def doubled(webgpu: Any, build: Build, site: tuple[Path, str]) -> Path:  # noqa: F811
    """A recording of two kernels, the second on what the first wrote: b = 2a, b += a."""
    library, n = build(kernels.scale), 1000
    more = build(kernels.increase)
    a = tvm.runtime.tensor(np.random.default_rng(0).uniform(-1, 1, n).astype("float32"), webgpu)
    b = tvm.runtime.empty((n,), "float32", webgpu)
    library.import_module(more)

    def run() -> dict[str, Any]:
        library["scale"](a, b, 2.0, n)
        more["increase"](a, b, n)
        return {"b": b}

    record(site[0] / "recording", library, {"a": a}, run)
    return site[0] / "recording"


def test_the_example(webgpu: Any, site: tuple[Path, str], browser: Browser) -> None:  # noqa: F811
    """Our 4-bit linear: TVM's WGSL passes Chromium's compiler and gives numpy's numbers."""
    folder, address = site
    subprocess.run([sys.executable, str(WEB / "example.py"), str(folder / "linear")], check=True, capture_output=True)
    result, text = outcome(browser, f"{address}?recording=linear/")
    assert result == "equal", text
    assert browser.text("tbody tr").split()[:2] == ["y", str(3 * 512)]


def test_kernels_run_in_order(doubled: Path, site: tuple[Path, str], browser: Browser) -> None:
    result, text = outcome(browser, site[1])
    assert result == "equal" and text.startswith("2 kernels on "), text


def test_wrong_results_are_seen(doubled: Path, site: tuple[Path, str], browser: Browser) -> None:
    path = doubled / DATA_FILE
    data = bytearray(path.read_bytes())
    at = json.loads((doubled / RECORDING_FILE).read_text())["results"][0]["at"]
    data[at + 3] ^= 0x40
    path.write_bytes(data)
    assert outcome(browser, site[1])[0] == "different"


def test_kernels_that_do_not_compile_are_told(doubled: Path, site: tuple[Path, str], browser: Browser) -> None:
    path = doubled / RECORDING_FILE
    path.write_text(path.read_text().replace("podArgs.n", "podArgs.nothing"))
    result, text = outcome(browser, site[1])
    assert result == "failed" and re.search(r"kernel (scale|increase)_kernel, line \d+: .*nothing", text), text


def test_a_recording_that_is_not_there(site: tuple[Path, str], browser: Browser) -> None:
    result, text = outcome(browser, f"{site[1]}?recording=nowhere/")
    assert result == "failed" and "there is no nowhere/recording.json" in text, text


def test_what_browsers_refuse_is_not_recorded(webgpu: Any, build: Build, tmp_path: Path) -> None:  # noqa: F811
    library = build(kernels.scale)
    tensor = tvm.runtime.tensor(np.ones(8, "float32"), webgpu)

    def run() -> dict[str, Any]:
        library["scale"](tensor, tensor, 2.0, 8)
        return {"tensor": tensor}

    with pytest.raises(UnsupportedError, match="Kernel scale_kernel reads and writes one buffer"):
        record(tmp_path, library, {"tensor": tensor}, run)
    assert not list(tmp_path.glob("*.json")) and backends.statistics("webgpu")["dispatches"] > 0
