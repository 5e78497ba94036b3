"""What a result must say about where it came from: the machine, its load, versions, a process's memory.

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
LLMSERVE = [sys.executable, "-c", "from llmserve.cli import main; main()"]


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
