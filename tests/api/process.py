"""The server of `server.py` as a process of its own, started and ended as `llmserve serve` is: with signals.

with process(executor={"step_seconds": 0.01}, limits={"max_waiting": 64}) as server: ...
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families


class Process:
    def __init__(self, **options: Any) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        options = {"port": self.port, "drain_seconds": 10.0, **options}
        environment = os.environ | options.pop("environment", {})
        self.scheme = "https" if "ssl_certfile" in options else "http"
        self.url = f"{self.scheme}://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", __name__, json.dumps(options, default=str)]
        root = Path(__file__).parents[2]
        # Not a pipe: one that nobody reads stops the server when it is full, after some hundred requests.
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.popen = subprocess.Popen(command, cwd=root, env=environment, stderr=self._said, text=True)
        self.headers: dict[str, str] = {}

    def wait(self) -> None:
        until = time.monotonic() + 30
        while True:
            try:
                httpx.get(f"{self.url}/version", verify=False)
                return
            except httpx.TransportError:
                assert self.popen.poll() is None and time.monotonic() < until, "the server did not start"
                time.sleep(0.05)

    def metrics(self) -> dict[str, float]:
        """Each sample by its name, summed over its labels."""
        found: dict[str, float] = {}
        text = httpx.get(f"{self.url}/metrics", headers=self.headers).text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found[sample.name] = found.get(sample.name, 0) + sample.value
        return found

    def wait_until_idle(self, seconds: float = 10.0) -> None:
        """Nothing runs or waits, and every page is back."""
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        until = time.monotonic() + seconds
        while any((now := self.metrics())[f"llmserve:{name}"] for name in names):
            assert time.monotonic() < until, {name: now[f"llmserve:{name}"] for name in names}
            time.sleep(0.05)

    def resident(self) -> int:
        """Bytes of memory that it has now."""
        return int(Path(f"/proc/{self.popen.pid}/statm").read_text().split()[1]) * resource.getpagesize()

    def most_resident(self) -> int:
        """Bytes of memory that it ever had."""
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.popen.send_signal(number)

    def end(self, seconds: float = 20.0) -> tuple[int, str]:
        """Its exit code and what it has logged, once it has ended."""
        code = self.popen.wait(seconds)
        self._said.seek(0)
        return code, self._said.read()


@contextmanager
def process(**options: Any) -> Iterator[Process]:
    """A server process. `executor`, `limits` and `template` are those of `server.build`, the rest its settings."""
    server = Process(**options)
    try:
        server.wait()
        yield server
    finally:
        if server.popen.poll() is None:
            server.signal(signal.SIGKILL)
        server.popen.wait()


def main() -> None:
    from llmserve.api.launch import run

    from .server import Executor, build

    options = json.loads(sys.argv[1])
    app, config, _ = build(Executor(**options.pop("executor", {})), **options)
    run(app, config)


if __name__ == "__main__":
    main()
