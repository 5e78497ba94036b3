"""The other end of worker.py: a runtime in a process of its own, which runs while it is asked something and is stopped
in between (SIGSTOP), so that nothing of one system runs while another is measured."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def stop(pid: int) -> None:
    """Takes a process off the cores, memory and sockets kept."""
    os.kill(pid, signal.SIGSTOP)


def resume(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)


class Worker:
    """A process that answers questions one at a time; see worker.py for what it can be asked.

    Attributes:
        runtime: what it runs. command: what was started, as one would type it.
        ready_seconds: that it took to load.
    """

    def __init__(self, runtime: str, *options: object) -> None:
        command = [sys.executable, str(HERE / "worker.py"), runtime, *map(str, options)]
        self.runtime, self.command = runtime, shlex.join(["python", "benchmarks/worker.py", *command[2:]])
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ready_seconds: float = self._reply("load")

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, question: str) -> Any:
        """The answer, decoded from JSON. Ends the program if the worker ends."""
        assert self._process.stdin is not None
        resume(self.pid)
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        return self._reply(question)

    def _reply(self, question: str) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.runtime} ended with status {self._process.wait()} at {question!r}")
        stop(self.pid)
        return json.loads(line)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
