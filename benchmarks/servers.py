"""The two servers over HTTP: throughput, time to the first token, peak memory, and start-up time.

Both are the real ones, started by the command line that a user would type; all of them stay up, stopped outright while
another is measured. llama-server runs with as many slots as there are clients, a context that holds what they ask for,
its idle-slot cache off (it would copy keys and values that nobody asks for again), and flash attention on and off.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from processes import resume, stop
from samples import Figures, Job

from llmserve.artifact import cache_root
from llmserve.bench import serve
from llmserve.bench.host import LLMSERVE, memory_mib
from llmserve.errors import LLMServeError

CLIENTS, PROMPT, ANSWER = 8, 128, 32
Command = Callable[[int], list[str]]
"""port → the command line that starts a server there."""


@dataclass(frozen=True)
class Server:
    """One that is running, or stopped for the time being. `command`: what was started, as one would type it."""

    name: str
    url: str
    pid: int
    command: str

    def job(self, clients: int = CLIENTS, prompt: int = PROMPT, answer: int = ANSWER) -> Job:
        """Streaming clients in this process, two requests each."""

        def ask() -> Figures:
            resume(self.pid)
            try:
                found = serve.load(self.url, clients, prompt, answer)
            finally:
                stop(self.pid)
            if found["requests_failed"]:
                raise LLMServeError(f"{self.name} failed {found['requests_failed']} of {found['requests']} requests.")
            return {name: float(value) for name, value in found.items()}

        return Job(self.name, ask, (self.pid, "self"))

    def memory(self) -> Figures:
        """Resident MiB: the peak, and what of it now is mapped from files (weights that are mapped count as that)."""
        found = memory_mib(self.pid)
        found["file_mib"] = _mib(self.pid, "RssFile")
        return found


def _mib(pid: int, field: str) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    found = re.search(rf"^{field}:\s*(\d+) kB", status, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def start(stack: ExitStack, name: str, command: Command) -> Server:
    """Starts `command(port)`, waits until it is ready, and stops it outright; it ends with the stack."""
    port = serve.free_port()
    words = command(port)
    url, process, _ = stack.enter_context(serve.running(words, port))
    stop(process.pid)
    return Server(name, url, process.pid, shown(words))


def starting(command: Command) -> Callable[[], Figures]:
    """Start a server, and end it when it is ready; it was our child, so its work counts as ours."""

    def ask() -> Figures:
        port = serve.free_port()
        with serve.running(command(port), port) as (_, _, seconds):
            return {"ready_seconds": seconds}

    return ask


def ours(checkpoint: Path | None, threads: int, quant: str | None) -> Command:
    """`llmserve serve` with its defaults, but for the number of threads."""
    model = None if checkpoint is None else str(checkpoint)
    return lambda port: serve.command(model, quant=quant, threads=threads, port=port)


def theirs(binary: Path, gguf: Path, threads: int, flash: str) -> Command:
    """llama-server; `flash` is on or off."""
    room = -(-(PROMPT + ANSWER + 1) // 256) * 256
    options: dict[str, object] = {"-m": gguf, "-t": threads, "-tb": threads, "--parallel": CLIENTS}
    options |= {"-c": CLIENTS * room, "-fa": flash, "--cache-ram": 0, "--host": "127.0.0.1"}
    words = [str(word) for pair in options.items() for word in pair]
    return lambda port: [str(binary), *words, "--cont-batching", "--no-webui", "--port", str(port)]


def shown(words: list[str]) -> str:
    """A command as one would type it, whatever this installation's paths are."""
    if words[: len(LLMSERVE)] == LLMSERVE:
        words = ["llmserve", *words[len(LLMSERVE) :]]
    return shlex.join([Path(words[0]).name, *words[1:]])


def cold_compile_seconds(command: list[str]) -> Figures:
    """Seconds of `llmserve compile` when weights are there and no library is: in a cache whose library is empty.

    All of the command counts, from the start of Python to its end. Raises LLMServeError if it fails.
    """
    with tempfile.TemporaryDirectory() as directory:
        for kind in ("weights", "params"):
            (cache_root() / kind).mkdir(parents=True, exist_ok=True)
            (Path(directory) / kind).symlink_to(cache_root() / kind)
        began = time.perf_counter()
        environment = {**os.environ, "LLMSERVE_CACHE": directory}
        done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        seconds = time.perf_counter() - began
    if done.returncode:
        raise LLMServeError(f"{shown(command)} failed: {done.stderr.strip().splitlines()[-1:]}")
    return {"compile_seconds": seconds}
