"""The trial of a device: a small kernel is compiled and run on it, in a process of its own.

A driver that hangs or crashes takes only that process with it. That a device has worked is kept in the cache, so that
later starts take it at once; that it has not is never kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from .artifact import cache_root
from .detect import Device
from .toolchain import TVM_NEEDED

_FILE = "devices.json"
# A first trial compiles the device's plugin; a trial on a busy machine may wait.
TIMEOUT = 120.0


@dataclass(frozen=True)
class Verdict:
    """The result of a trial: why it failed (empty if the result was right), how long a run of the kernel took, and what
    the device calls itself."""

    problem: str = ""
    seconds: float = 0.0
    device: str = ""


def works(device: Device) -> bool:
    """Whether the device works, from the cache or by trial."""
    key = _key(device)
    known = _read()
    if key in known:
        return True
    if attempt(device.platform, device.arch).problem:
        return False
    _write({**known, key: f"{device.platform} {device.name}"})
    return True


def attempt(platform: str, arch: str | None = None, timeout: float = TIMEOUT) -> Verdict:
    """A trial of the platform on this machine, now."""
    command = [sys.executable, "-m", "llmserve.compile.selftest", platform, *([arch] if arch else [])]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout, stdin=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired:
        return Verdict(f"It gave no answer in {timeout:.0f} s.")
    except OSError as error:
        return Verdict(f"It could not be tried ({error.strerror}).")
    lines = done.stdout.decode(errors="replace").strip().splitlines()
    try:
        answer = json.loads(lines[-1])
        return Verdict(str(answer["problem"]), float(answer["seconds"]), str(answer["device"]))
    except (IndexError, ValueError, KeyError, TypeError):
        words = done.stderr.decode(errors="replace").strip().splitlines() or ["no words"]
        return Verdict(f"The process that tried it ended with {done.returncode} ({words[-1]}).")


def _key(device: Device) -> str:
    """Changes with the device, its driver, and what would be compiled for it."""
    facts = [device.platform, device.name, device.arch, device.driver, *TVM_NEEDED.values()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _read() -> dict[str, str]:
    try:
        known = json.loads((cache_root() / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in known.items()} if isinstance(known, dict) else {}


def _write(known: dict[str, str]) -> None:
    path = cache_root() / _FILE
    temporary = Path(f"{path}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError:  # a cache that cannot be written costs a trial at the next start, no more
        temporary.unlink(missing_ok=True)
