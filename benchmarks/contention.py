"""Contention: the share of its speed that a runtime keeps beside a second load, a busy thread for each core.

A fair share of the cores is one half. A runtime whose threads wait for each other in each operator can get far less:
while one of them is off its core, the others wait or spin.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from processes import resume, stop
from samples import Job, QuietWait, Record, in_turns

from llmserve.bench.host import cores

FAIR_SHARE = 0.5
SHARE_WANTED = FAIR_SHARE / 2  # of the speed alone


class Spinners:
    """A process for each core, of this process's priority, that does nothing but count; stopped until `spinning`."""

    def __init__(self, count: int | None = None) -> None:
        code = "while True: pass"
        self._processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count or cores())]
        for pid in self.pids:
            stop(pid)

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(process.pid for process in self._processes)

    @contextmanager
    def spinning(self) -> Iterator[None]:
        for pid in self.pids:
            resume(pid)
        try:
            yield
        finally:
            for pid in self.pids:
                stop(pid)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


def beside(job: Job, spinners: Spinners) -> Job:
    """The same job with the second load beside it, whose work is not counted as others'."""

    def ask() -> dict[str, float]:
        with spinners.spinning():
            return job.ask()

    return replace(job, name=loaded(job.name), ask=ask, pids=(*job.pids, *spinners.pids))


def loaded(name: str) -> str:
    """The name under which the samples of `beside` are recorded."""
    return f"{name}, loaded"


def measure(questions: list[list[Job]], repetitions: int, patience: QuietWait) -> Record:
    """Every job alone and with the load, in turns."""
    spinners = Spinners()
    try:
        turns = [[variant for job in jobs for variant in (job, beside(job, spinners))] for jobs in questions]
        return in_turns(turns, repetitions, patience)
    finally:
        spinners.close()


def kept(alone: float | None, beside_it: float | None) -> float | None:
    """The part of the speed that is left; None where one of the two is not given."""
    return None if alone is None or beside_it is None else beside_it / alone
