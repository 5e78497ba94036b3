"""Samples: one measurement and the machine's other load meanwhile, many of them in turns, and their medians.

A sample counts only if nobody else used the machine while it was taken. Knows nothing of models or runtimes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from llmserve.bench.host import Bystanders, cores

QUIET = 0.04  # share of the machine's cores that others may use; the kernel's own housekeeping is below it
GRAIN = 0.02  # seconds that the system's accounting may be off by

Figures = dict[str, float]


@dataclass(frozen=True)
class Sample:
    """Figures by name, the cores that others used while they were taken (None: not told, and believed), and how long
    that was in seconds."""

    figures: Figures
    others: float | None
    seconds: float

    def __str__(self) -> str:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in self.figures.items())
        word = "" if self.undisturbed else f" (does not count: others used {self.others:.2f} cores)"
        return f"{figures}, in {self.seconds:.1f} s{word}"

    @property
    def undisturbed(self) -> bool:
        return self.others is None or self.others <= QUIET * cores() + GRAIN / self.seconds


@dataclass(frozen=True)
class Job:
    """One thing to measure: who is measured, how it is asked, and which processes' work is its own."""

    name: str
    ask: Callable[[], Figures]
    pids: tuple[int | str, ...]

    def sample(self) -> Sample:
        others, began = Bystanders(*self.pids), time.perf_counter()
        figures = self.ask()
        return Sample(figures, others.cores(), time.perf_counter() - began)


class QuietWait:
    """The wait for a quiet machine, for so many seconds in all; after that, samples may be disturbed.

    `tell` is called with a line about each sample.
    """

    def __init__(self, seconds: float, tell: Callable[[str], None] | None = None) -> None:
        self._left = seconds
        self._tell = tell or (lambda line: None)

    @property
    def exhausted(self) -> bool:
        return self._left <= 0

    def wait(self, pids: tuple[int | str, ...] = ()) -> None:
        """`pids`: whose work is ours even now, such as a load that is there on purpose."""
        while True:
            others, began = Bystanders(*pids), time.perf_counter()
            time.sleep(0.3)
            if (found := others.cores()) is None or found <= QUIET * cores() + GRAIN / 0.3 or self.exhausted:
                return
            self._left -= time.perf_counter() - began

    def sample(self, job: Job) -> list[Sample]:
        """Samples until one is undisturbed or patience ends; all of them, for the record."""
        taken: list[Sample] = []
        while not taken or not (taken[-1].undisturbed or self.exhausted):
            self.wait(job.pids)
            taken.append(job.sample())
            self._tell(f"{job.name}: {taken[-1]}")
            self._left -= 0 if taken[-1].undisturbed else taken[-1].seconds
        return taken


Record = dict[str, list[Sample]]
"""Samples by the name of who was measured, in the order in which they were taken."""


def in_turns(questions: Iterable[list[Job]], repetitions: int, patience: QuietWait) -> Record:
    """Every question to everybody, A B then B A, so that whatever drifts meets all alike."""
    asked = list(questions)
    record: Record = {job.name: [] for jobs in asked for job in jobs}
    for repetition in range(repetitions):
        for jobs in asked:
            for job in jobs if repetition % 2 == 0 else jobs[::-1]:
                record[job.name] += patience.sample(job)
    return record


def medians(samples: Iterable[Sample]) -> Figures:
    """Figure by figure, the median of the samples that count; none where none counts."""
    found: dict[str, list[float]] = {}
    for sample in samples:
        if sample.undisturbed:
            for name, value in sample.figures.items():
                found.setdefault(name, []).append(value)
    return {name: median(values) for name, values in found.items()}


def best(variants: Iterable[Mapping[str, float]]) -> Figures:
    """Of several ways to set up one system, the highest of each figure: it is compared at its best."""
    found: Figures = {}
    for figures in variants:
        for name, value in figures.items():
            found[name] = max(found.get(name, value), value)
    return found
