"""Facts about the host that a result needs: the machine, its load, versions, a process's memory.

Reads /proc where there is one; elsewhere the figures that need it are left out rather than guessed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from .. import __version__
from ..platforms import describe_host

# The command line of this very installation, whether or not its script is on the PATH.
LLMSERVE = [sys.executable, "-m", "llmserve"]


def options(**values: Any) -> list[str]:
    """Command-line options from those that are set: max_model_len=256 → ["--max-model-len", "256"]."""
    given = ((f"--{name.replace('_', '-')}", str(value)) for name, value in values.items() if value is not None)
    return [word for pair in given for word in pair]


def prepare(
    model: str | None, *, quant: str | None = None, device: str | None = None, arch: str | None = None
) -> tuple[float, str]:
    """Convert and compile into the cache, in a process of its own, so that memory measured later is that of serving.

    Returns seconds and what the command had to say. It may fail: whoever loads the model next raises the same error.
    """
    words = [model] if model is not None else []
    command = [*LLMSERVE, "compile", *words, *options(quant=quant, device=device, arch=arch)]
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    lines = [line for line in done.stdout.splitlines() if not line.startswith(("Library:", "Weights:"))]
    return time.perf_counter() - began, " ".join(lines)


def memory_mib(pid: int | str = "self") -> dict[str, float]:
    """Resident memory of a process in MiB, now and at its peak; empty where the system does not say."""
    names = {"VmRSS": "rss_mib", "VmHWM": "peak_rss_mib"}
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as lines:
            rows = (line.split(":") for line in lines if ":" in line)
            return {names[row[0]]: int(row[1].split()[0]) / 1024 for row in rows if row[0] in names}
    except (OSError, ValueError):
        return {}


def machine_seconds() -> float | None:
    """CPU seconds that all cores together have been busy (or withheld by a hypervisor); None where it is not told."""
    try:
        with open("/proc/stat", encoding="ascii") as lines:
            user, nice, system, _, _, irq, softirq, steal = map(int, next(lines).split()[1:9])
    except (OSError, ValueError, StopIteration):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def process_seconds(pid: int | str = "self") -> float:
    """CPU seconds of a process, its threads, and its children that have ended. Raises OSError where it is not told."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


class Bystanders:
    """How many cores others kept busy between making this and asking: what tells a slow runtime from a busy machine.

    A runtime that synchronises its threads often slows down far more than its share when one core is taken away, so
    neither medians nor taking turns repair a comparison made in company.
    """

    def __init__(self, *pids: int | str) -> None:
        """`pids`: the processes that are ours, "self" for this one, which is also what is meant without any."""
        self._pids = pids or ("self",)
        self._began, self._start = time.perf_counter(), self._others()

    def cores(self) -> float | None:
        """None where the system does not say."""
        now = self._others()
        if now is None or self._start is None:
            return None
        return max(0.0, now - self._start) / max(time.perf_counter() - self._began, 1e-3)

    def _others(self) -> float | None:
        total = machine_seconds()
        return None if total is None else total - sum(map(process_seconds, self._pids))


def load_average() -> float:
    """Processes that wanted a core, over the last minute: above 0 before a measurement, somebody else was there."""
    return os.getloadavg()[0]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def provenance(threads: int | None = None) -> dict[str, Any]:
    """The fields that every result begins with."""
    return {
        "version": __version__,
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "machine": describe_host(),
        "threads": threads or cores(),
        "load_average_before": load_average(),
    }
