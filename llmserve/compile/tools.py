"""Tools that compiling for a platform needs on this machine, and the commands that install missing ones. No tvm here.

Linking needs a C++ compiler everywhere. Kernels for cuda need nvcc or NVRTC, for rocm LLVM's linker; those for metal
and webgpu are source text, which the device's driver compiles. detect.py knows what *running* needs.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..errors import ArtifactError, UnsupportedError
from ..machine import THIS, Machine, cuda_directories, cuda_runtime, first, install

CXX = ("g++", "clang++", "c++")
CUDA_PACKAGES = "pip install 'llmserve[cuda]'"
# Newer linkers read older code objects, so the newest goes first. 14 is the oldest that was tried.
_LLD = ("ld.lld", *(f"ld.lld-{major}" for major in range(22, 13, -1)))


@dataclass(frozen=True)
class Tool:
    """A tool that compiling needs: its place (None if it is missing), and the command that installs it."""

    name: str
    found: str | None
    remedy: str


@dataclass(frozen=True)
class CudaCompiler:
    """A compiler of CUDA source: `mode` as TVM_CUDA_COMPILE_MODE has it, `home` for CUDA_PATH."""

    mode: str
    home: Path


def needed(platform: str, arch: str | None = None, machine: Machine = THIS) -> list[Tool]:
    """Everything that compiling for a platform needs, found or not; `arch` is what `--arch` takes."""
    compiler = next(filter(None, map(shutil.which, CXX)), None)
    remedy = "xcode-select --install" if machine.system == "Darwin" else install(apt="g++", dnf="gcc-c++", pacman="gcc")
    return [Tool("a C++ compiler", compiler, remedy), *_OWN.get(platform, lambda arch, machine: [])(arch, machine)]


def require(platform: str, arch: str | None = None, machine: Machine = THIS) -> None:
    """Raises ArtifactError with one sentence for each tool that is missing, UnsupportedError where there is no way."""
    if platform in ("cuda", "rocm") and machine.system != "Linux":
        raise UnsupportedError(f"Compiling for {platform} needs Linux, and this is {machine.system}.")
    missing = [tool for tool in needed(platform, arch, machine) if tool.found is None]
    if missing:
        raise ArtifactError(" ".join(f"Compiling for {platform} needs {t.name}; run: {t.remedy}" for t in missing))


def cuda_compiler(arch: str | None, machine: Machine = THIS) -> CudaCompiler | None:
    """nvcc where it knows the family (`sm_90`), else NVRTC from pip, else None."""
    in_path = shutil.which("nvcc")
    programs = [Path(in_path)] if in_path else []
    for program in [*programs, *(directory / "bin" / "nvcc" for directory in cuda_directories(machine))]:
        if program.exists() and (arch is None or family(arch) in _nvcc_families(str(program), machine)):
            return CudaCompiler("nvcc", program.resolve().parents[1])
    home = nvrtc_home(machine)
    return CudaCompiler("nvrtc", home) if home else None


def nvrtc_home(machine: Machine = THIS) -> Path | None:
    """Directory of NVRTC and the headers that TVM's kernels include, if all of them are installed."""
    package = machine.package("nvidia")
    home = package / "cu13" if package else None
    if home is None or machine.package("cuda.bindings") is None:
        return None
    headers = ("cuda_runtime.h", "cuda_fp16.h", "crt/host_defines.h", "cccl/cuda/std/cstdint")
    parts = (home / "lib" / "libnvrtc.so.13", *(home / "include" / header for header in headers))
    return home if all(part.exists() for part in parts) else None


def family(arch: str) -> str:
    """`sm_90a` and `compute_90` are `90`."""
    match = re.fullmatch(r"(?:sm|compute)_(\d+)[af]?", arch)
    return match[1] if match else arch


def llvm_linker(machine: Machine = THIS) -> str | None:
    """ld.lld, from the system or ROCm."""
    named = next(filter(None, map(shutil.which, _LLD)), None)
    found = first([Path("/opt/rocm/llvm/bin/ld.lld"), *sorted(Path("/opt").glob("rocm-*/llvm/bin/ld.lld"))[::-1]])
    return named or (str(found) if found else None)


@cache
def _nvcc_families(nvcc: str, machine: Machine) -> frozenset[str]:
    listed = machine.output(nvcc, "--list-gpu-arch") or ""
    return frozenset(family(word) for word in listed.split())


def _cuda(arch: str | None, machine: Machine) -> list[Tool]:
    compiler = cuda_compiler(arch, machine)
    found = f"{compiler.mode} in {compiler.home}" if compiler else None
    name = f"nvcc or NVRTC of CUDA 13{f' (for {arch})' if arch else ''}"
    runtime = cuda_runtime(machine)
    where = str(runtime) if runtime else None
    if where is None and machine.why_not("libcudart.so.13") is None:
        where = "libcudart.so.13"
    return [Tool(name, found, CUDA_PACKAGES), Tool("CUDA 13's runtime (libcudart.so.13)", where, CUDA_PACKAGES)]


def _rocm(arch: str | None, machine: Machine) -> list[Tool]:
    return [Tool("LLVM's linker (ld.lld)", llvm_linker(machine), install(apt="lld"))]


_OWN: Mapping[str, Callable[[str | None, Machine], list[Tool]]] = {"cuda": _cuda, "rocm": _rocm}
