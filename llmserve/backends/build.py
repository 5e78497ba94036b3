"""Plugins, compiled on the machine that uses them and kept in the cache: C++ beside this file, one library each.

A plugin is compiled against the headers that come with TVM, takes TVM's symbols from the process that loads it, and
registers its device and its loader of compiled kernels with TVM. None of the compiled model is in it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .. import artifact
from ..errors import ArtifactError, UnsupportedError
from ..toolchain import tvm_version

logger = logging.getLogger(__name__)

KIND = "backend"
PLUGIN_FILE = "backend.so"
COMPILERS = ("g++", "clang++", "c++")
_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden")


@dataclass(frozen=True)
class Needs:
    """A plugin's needs beside TVM: header directories, libraries to load before it, and the version that says so."""

    version: str
    includes: tuple[Path, ...] = ()
    libraries: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Backend:
    """A plugin: the names of its sources beside this file (the first is compiled, and includes the others), and a
    function that looks for what it needs and raises UnsupportedError when that is not there."""

    sources: tuple[str, ...]
    needs: Callable[[], Needs]


def wgpu_needs() -> Needs:
    """The package that carries wgpu-native. It is not imported: its library and headers are all that is used."""
    spec = importlib.util.find_spec("wgpu")
    resources = Path(next(iter(spec.submodule_search_locations or ()), "")) / "resources" if spec else Path()
    found = sorted(resources.glob("libwgpu_native*.so" if sys.platform != "darwin" else "libwgpu_native*.dylib"))
    if not found:
        raise UnsupportedError("The webgpu device needs the package wgpu; run: pip install 'llmserve[webgpu]'")
    return Needs(f"wgpu {importlib.metadata.version('wgpu')}", (resources,), (found[0],))


BACKENDS = {
    "webgpu": Backend(
        (
            "webgpu.cc",
            *(f"webgpu_{part}.h" for part in ("device", "kernel", "memory", "pipeline", "queue", "trace")),
            "module.h",
        ),
        wgpu_needs,
    ),
    "rocm": Backend(
        (
            "hip.cc",
            *(f"hip_{part}.h" for part in ("api", "declarations", "graph", "module")),
            "module.h",
        ),
        lambda: Needs("HIP's interface, as it is declared here"),
    ),
}


def obtain(name: str, needs: Needs) -> Path:
    """The plugin's shared library, compiled (10 s) unless the cache has it.

    Raises UnsupportedError without a C++ compiler, ArtifactError with the compiler's words when it fails.
    """
    sources = BACKENDS[name].sources
    causes = {
        "platform": name,
        "sources": artifact.source_hash("backends/tvm_support", *(f"backends/{source}" for source in sources)),
        "tvm": tvm_version(),
        "needs": needs.version,
        "machine": f"{sys.platform} {platform.machine()}",
    }

    def make(directory: Path) -> None:
        logger.info("compiling the %s backend (once)", name)
        compile_plugin(Path(__file__).with_name(sources[0]), needs.includes, directory / PLUGIN_FILE)

    return artifact.obtain(KIND, causes, make) / PLUGIN_FILE


def compile_plugin(source: Path, includes: tuple[Path, ...], output: Path, more: tuple[str, ...] = ()) -> None:
    """Compiles one source file to a shared library, with `more` flags. Raises as `obtain` does."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None or sys.platform == "win32":
        raise UnsupportedError(
            "This device needs a C++ compiler, on Linux or macOS; install g++ (Debian: apt install g++)."
        )
    # The last is for headers of TVM that its wheel has not, and comes last for the day when it has them.
    ours = Path(__file__).with_name("tvm_support")
    headers = (*(package_directory(name) / "include" for name in ("tvm", "tvm_ffi")), *includes, ours)
    # What is of TVM and of the device's own library is found in the process at load time.
    last = ("-undefined", "dynamic_lookup") if sys.platform == "darwin" else ("-ldl",)
    command = [compiler, *_FLAGS, *more, *(f"-I{path}" for path in headers), str(source), "-o", str(output), *last]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ArtifactError(f"{compiler} could not compile {source.name} ({' '.join(command)}): {done.stderr[:2000]}")


def package_directory(name: str) -> Path:
    """The directory of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.submodule_search_locations  # tvm_version() has seen that it is installed
    return Path(next(iter(spec.submodule_search_locations)))
