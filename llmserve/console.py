"""Progress of the command line on standard error: one line per step."""

from __future__ import annotations

import sys
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

_TITLES = {
    "convert": "Quantizing weights",
    "arrange": "Arranging weights",
    "compile": "Compiling",
    "calibrate": "Calibrating",
    "report": "Judging",
    "sensitivity": "Measuring",
}


@cache
def _stderr() -> Console:
    from rich.console import Console  # on first use: a cached start has no use for it

    return Console(stderr=True)


def say(line: str, style: str | None = None) -> None:
    """A line on standard error, as it is: not wrapped, and no markup read in names."""
    if style is None:
        print(line, file=sys.stderr, flush=True)
    else:
        _stderr().print(line, style=style, highlight=False, markup=False, soft_wrap=True)


class Steps:
    """A `compile.build.Notify` that draws a bar for each step as it comes up."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Steps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, step: str, detail: str, fraction: float | None) -> None:
        if self._progress is None:  # with the first step, so that a cached start shows nothing
            self._progress = _progress()
            self._progress.start()
        if step not in self._tasks:
            total = None if fraction is None else 1.0
            self._tasks[step] = self._progress.add_task(_TITLES.get(step, step), total=total, detail=detail)
        task = self._tasks[step]
        if fraction is None:
            self._progress.update(task, detail=detail)
        else:
            self._progress.update(task, total=1.0, completed=fraction, detail="" if fraction == 1.0 else detail)


def _progress() -> Progress:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<20}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}"),
        console=_stderr(),
    )
