"""Facts of a machine that can be asked without using its devices: files, programs' output, whether libraries load.

Every question has an answer, and none raises: what is not there, or does not work, is None or a reason. Libraries are
loaded in a process of their own, since a broken driver may take that process with it.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_LOAD = """
import ctypes, sys
for name in sys.argv[1:]:
    print(name, end="\\t", flush=True)
    try:
        ctypes.CDLL(name)
        print("", flush=True)
    except OSError as error:
        print(str(error).replace("\\n", " "), flush=True)
"""


@dataclass(frozen=True)
class Machine:
    """This machine, or a directory that looks like one (`root`), for tests."""

    root: Path = Path("/")
    system: str = platform.system()
    architecture: str = platform.machine()

    def path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def exists(self, path: str) -> bool:
        try:
            return self.path(path).exists()
        except OSError:
            return False

    def read(self, path: str) -> str | None:
        """A small text file's content, stripped; None where it cannot be read."""
        try:
            return self.path(path).read_text(encoding="utf-8", errors="replace")[: 1 << 16].strip()
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        """A file's content as a number, in decimal or with 0x."""
        try:
            return int(self.read(path) or "", 0)
        except ValueError:
            return None

    def glob(self, directory: str, pattern: str) -> list[str]:
        """Paths below a directory, sorted, as this machine calls them."""
        try:
            return sorted(f"/{found.relative_to(self.root)}" for found in self.path(directory).glob(pattern))
        except OSError:
            return []

    def writable(self, path: str) -> bool:
        return os.access(self.path(path), os.R_OK | os.W_OK)

    def output(self, *command: str, timeout: float = 10) -> str | None:
        """The output of a program; None where there is no such program, or it fails or takes too long."""
        program = shutil.which(command[0])
        if program is None:
            return None
        try:
            done = subprocess.run(
                [program, *command[1:]], capture_output=True, timeout=timeout, stdin=subprocess.DEVNULL, check=False
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None

    def why_not(self, library: str) -> str | None:
        """None if the dynamic linker loads a library of that name, else its reason."""
        return _loading(library)

    def package(self, name: str) -> Path | None:
        """Directory of an installed Python package, which is not imported."""
        try:
            found = importlib.util.find_spec(name)
        except (ImportError, ValueError, AttributeError):
            return None
        places = list(found.submodule_search_locations or ()) if found else []
        return Path(places[0]) if places else None


@cache
def _loading(library: str) -> str | None:
    command = [sys.executable, "-c", _LOAD, library]
    try:
        done = subprocess.run(command, capture_output=True, timeout=30, stdin=subprocess.DEVNULL, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{library} could not be tried ({type(error).__name__})"
    if done.returncode:
        return f"{library} ends the process that loads it (exit code {done.returncode})"
    return done.stdout.decode(errors="replace").partition("\t")[2].strip() or None


def first(paths: Iterable[Path]) -> Path | None:
    """The first that exists."""
    for path in paths:
        try:
            if path.exists():
                return path
        except OSError:
            continue
    return None


THIS = Machine()


def size(count: int) -> str:
    """Bytes in words: 1.5 GiB."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def install(**packages: str) -> str:
    """The command that installs a package with this system's package manager: apt, dnf, pacman, zypper or brew.

    `packages` name it for each; apt's name stands for those left out. Where none is found, apt's command is given.
    """
    commands = {
        "apt": "apt install {}",
        "dnf": "dnf install {}",
        "pacman": "pacman -S {}",
        "zypper": "zypper install {}",
        "brew": "brew install {}",
    }
    programs = {"apt": "apt-get"}
    found = next((name for name in commands if shutil.which(programs.get(name, name))), "apt")
    return commands[found].format(packages.get(found, packages["apt"]))


def cuda_directories(machine: Machine = THIS) -> list[Path]:
    """Directories that CUDA 13 may be in: $CUDA_PATH, the packages of `llmserve[cuda]`, nvcc's toolkit, /usr/local."""
    named = [Path(value) for name in ("CUDA_PATH", "CUDA_HOME") if (value := os.environ.get(name))]
    package = machine.package("nvidia")
    named += [package / "cu13"] if package else []
    if compiler := shutil.which("nvcc"):
        named.append(Path(compiler).resolve().parents[1])
    return [*named, Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-13*"), reverse=True)]


def cuda_runtime(machine: Machine = THIS) -> Path | None:
    """libcudart.so.13, which TVM's CUDA runtime is linked to and no driver brings; None where it is not in any of
    `cuda_directories` (the dynamic linker may still know one)."""
    return first(
        directory / folder / "libcudart.so.13"
        for directory in cuda_directories(machine)
        for folder in ("lib", "lib64", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib")
    )
