"""The packages that a prepared folder carries: TVM's runtime for several Pythons, CUDA's, llmserve, and this folder.

Everything is copied from the packages installed here, except those compiled for a Python, which pip fetches for each.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from llmserve.backends import build
from llmserve.toolchain import TVM_NEEDED

HERE = Path(__file__).parent
CUDART = "libcudart.so.13"
# Of TVM: what only a compiler needs, or nobody.
_LEFT_OUT = {
    "relax",
    "s_tir",
    "topi",
    "contrib",
    "testing",
    "web",
    "3rdparty",
    "include",
    "src",
    "cmake",
    "__pycache__",
}
_LEFT_OUT_FILES = ("libtvm_compiler",)
_RUN_SIDE = ("cases", "oracles", "device", "model", "accuracy", "speed", "worker", "run", "torch_rate", "report")
_PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17)] + ["manylinux2014_x86_64"]


def collect(folder: Path, device: str, pythons: Sequence[str], downloads: Path) -> dict[str, list[str]]:
    """Fills `folder`/lib and `folder`/system; returns the libraries that are loaded before TVM, of TVM, and after it.

    Raises RuntimeError with pip's words where a package for one of `pythons` ("3.10") is not to be had.
    """
    lib, system = folder / "lib", folder / "system"
    for directory in (lib, system):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
    _copy(_package("tvm"), lib / "tvm")
    for python in pythons:
        for wheel in _wheels(python, downloads):
            _unpack(wheel, lib)
    _copy_file(_module("typing_extensions"), lib)
    _copy(_package("llmserve"), lib / "llmserve", {"data", "__pycache__"})
    own = lib / "benchmarks" / "gpu"
    own.mkdir(parents=True)
    for name in _RUN_SIDE:
        _copy_file(HERE / f"{name}.py", own)
    loaded: dict[str, list[str]] = {"load_before": [], "tvm_libraries": ["tvm_runtime_extra"], "load_after": []}
    if device == "cuda":
        _copy_file(_cuda_runtime(downloads), system)
        loaded["load_before"].append(f"system/{CUDART}")
        loaded["tvm_libraries"].append("tvm_runtime_cuda")
    elif device in build.BACKENDS:
        needs = build.BACKENDS[device].needs()
        for library in needs.libraries:
            _copy_file(library, system)
            loaded["load_before"].append(f"system/{library.name}")
        _copy_file(build.obtain(device, needs), system)
        loaded["load_after"].append(f"system/{build.PLUGIN_FILE}")
    return loaded


def _package(name: str) -> Path:
    return build.package_directory(name)


def _module(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"{name} is not installed; run: make env")
    return Path(spec.origin)


def _copy(source: Path, target: Path, left_out: set[str] = _LEFT_OUT) -> None:
    def ignored(directory: str, names: list[str]) -> set[str]:
        return {n for n in names if n in left_out or n.startswith(_LEFT_OUT_FILES)}

    # Links within TVM's package ("lib64") lead to what is copied anyway.
    shutil.copytree(source, target, ignore=ignored, symlinks=True)


def _copy_file(source: Path, directory: Path) -> None:
    shutil.copyfile(source, directory / source.name)


def _wheels(python: str, downloads: Path) -> list[Path]:
    """tvm-ffi and ml_dtypes for a Python, as wheels, fetched once."""
    directory = downloads / python
    needed = ("apache-tvm-ffi", "ml_dtypes")
    if len(list(directory.glob("*.whl"))) < len(needed):
        pinned = [f"apache-tvm-ffi=={TVM_NEEDED['apache-tvm-ffi']}", "ml_dtypes"]
        platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
        _pip(directory, "--only-binary=:all:", "--implementation=cp", f"--python-version={python}", *platforms, *pinned)
    return sorted(directory.glob("*.whl"))


def _cuda_runtime(downloads: Path) -> Path:
    """libcudart.so.13: of pip's package where it is installed or to be had."""
    spec = importlib.util.find_spec("nvidia")
    for place in spec.submodule_search_locations or () if spec else ():
        if (found := Path(place) / "cu13" / "lib" / CUDART).exists():
            return found
    directory = downloads / "cuda"
    if not list(directory.glob("*.whl")):
        _pip(directory, "--only-binary=:all:", "nvidia-cuda-runtime==13.*")
    _unpack(sorted(directory.glob("*.whl"))[-1], directory)
    return next(directory.rglob(CUDART))


def _pip(directory: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"--dest={directory}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"pip could not fetch {' '.join(arguments)}: {done.stderr.strip()[-500:]}")


def _unpack(wheel: Path, target: Path) -> None:
    """The files of a wheel but for what only a compiler needs; packages for several Pythons share a directory, as
    their compiled modules have different names."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            parts = Path(member.filename).parts
            if not _LEFT_OUT.intersection(parts) and not parts[-1].startswith(_LEFT_OUT_FILES):
                archive.extract(member, target)
