"""Runs the CUDA and Metal source that TVM makes of a PrimFunc on a CPU, in guarded memory: block.h says what it checks.

The source is compiled as it is, by the machine's C++ compiler, against headers of the names that it includes: those in
cuda/ and metal/. TVM's own host code launches it, through a library that stands in for the device's module.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import mmap
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi

from llmserve.compile.pipeline import build_context

HERE = Path(__file__).parent
ALIGNMENT = 64  # of tensors, which TVM's host code asks for
# Not optimised, as compiling takes far longer than running. Checked are indices of arrays, alignment, shifts and
# overflow; variables that nothing was written to are NaN or huge.
_CHECKS = "bounds,alignment,shift,signed-integer-overflow,integer-divide-by-zero"
_OPTIONS = (
    *("-std=c++20", "-O0", "-march=native", "-fPIC", "-w", "-fno-strict-aliasing"),
    *("-ftrivial-auto-var-init=pattern", f"-fsanitize={_CHECKS}", "-fno-sanitize-recover=all"),
)
_PAGE = mmap.PAGESIZE
_POISON = 0xFF  # NaN as a float, of any size; -1 as an integer


def missing() -> str | None:
    """Why nothing can be emulated here."""
    if sys.platform != "linux" or not shutil.which("g++"):
        return "kernels on emulated GPUs: that takes Linux and g++ (apt install g++)"
    return None


def built(func: tvm.tirx.PrimFunc, target: Mapping[str, Any]) -> tuple[Any, str]:
    """A PrimFunc as TVM's module of host code and the source of its kernels, for a cuda or metal target.

    Raises RuntimeError if a kernel takes more shared memory than the target's blocks have.
    """
    # Tensors of the host code are the CPU's; everything else is for the target.
    host = {**target, "host": {"kind": "llvm"}, "target_device_type": tvm.cpu().dlpack_device_type()}
    with build_context():
        module = tvm.compile(tvm.IRModule({str(func.attrs["global_symbol"]): func}), target=tvm.target.Target(host)).mod
    source = module.imports[0].inspect_source()
    limit = target["max_shared_memory_per_block"]
    for name, size in shared_bytes(source, str(target["kind"])).items():
        if size > limit:
            raise RuntimeError(f"{name} takes {size} bytes of shared memory, and a block has {limit}.")
    return module, source


def emulated(func: tvm.tirx.PrimFunc, target: Mapping[str, Any]) -> Callable[..., None]:
    """A callable over numpy arrays, as the harness has it, of a PrimFunc for a cuda or metal target.

    It raises RuntimeError for what block.h checks, and for writes beyond an array.
    """
    module, source = built(func, target)
    library = library_of(source, str(target["kind"]))

    @cache
    def linked() -> Callable[..., None]:
        module.clear_imports()
        module.import_module(tvm_ffi.load_module(str(library.wait())))
        return module[str(func.attrs["global_symbol"])]

    def run(*arrays: np.ndarray) -> None:
        guarded = [Guarded(array) for array in arrays]
        linked()(*(tvm_ffi.from_dlpack(memory.array) for memory in guarded))
        for array, memory in zip(arrays, guarded, strict=True):
            memory.check()
            if array.flags.writeable:
                array[...] = memory.array

    return run


class Guarded:
    """A copy of an array, with nothing but forbidden pages after it, less what alignment takes."""

    def __init__(self, array: np.ndarray) -> None:
        size = -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        pages = -(-size // _PAGE) * _PAGE
        memory = mmap.mmap(-1, pages + 2 * _PAGE)
        whole = np.frombuffer(memory, np.uint8)
        whole[_PAGE:-_PAGE] = _POISON
        first = _PAGE + pages - size
        self.array = whole[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
        self.array[...] = array
        self._slack = (whole[_PAGE:first], whole[first + array.nbytes : -_PAGE])
        for page in (0, _PAGE + pages):
            _forbid(whole.ctypes.data + page)

    def check(self) -> None:
        if not all((part == _POISON).all() for part in self._slack):
            raise RuntimeError("A kernel wrote beside an array.")


def _forbid(page: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(_PAGE), 0):
        raise OSError(ctypes.get_errno(), "mprotect")


def kernels(source: str, kind: str) -> dict[str, str]:
    """The functions in TVM's source, with what stands in it for each: for Metal, what is compiled by itself."""
    if kind == "metal":
        parts = re.split(r"// Function: (\w+)\n", source)[1:]
        return dict(zip(parts[::2], parts[1::2], strict=True))
    parts = re.split(r'extern "C" __global__ void __launch_bounds__\(\d+\) (\w+)(?=\([^;]*\) \{)', source)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def shared_bytes(source: str, kind: str) -> dict[str, int]:
    """Static memory of a block, by kernel, every array rounded up to its alignment."""
    sizes = {"half": 2, "float": 4, "int": 4, "uint": 4}
    arrays = re.compile(r"^ *(?:__shared__ alignas\((\d+)\)|threadgroup) (\w+) \w+\[(\d+)\];", re.MULTILINE)
    return {
        name: sum(
            math.ceil(sizes[dtype] * int(count) / int(aligned or 16)) * int(aligned or 16)
            for aligned, dtype, count in arrays.findall(body)
        )
        for name, body in kernels(source, kind).items()
    }


class Library:
    """A shared library that is being made of a source, while others do something else."""

    def __init__(self, source: str, kind: str) -> None:
        stem = Path(_session().name) / hashlib.sha256(source.encode()).hexdigest()[:16]
        self._path = stem.with_suffix(".so")
        text = stem.with_suffix(".cc")
        text.write_text(source, encoding="utf-8")
        command = [*_compiler(kind), "-shared", "-include", str(_headers(kind)), str(text), "-o", str(self._path)]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self._errors = ""

    def wait(self) -> Path:
        if self._process.returncode is None:
            self._errors = self._process.communicate()[1]
        if self._process.returncode:
            raise RuntimeError(f"g++ does not compile the emulation: {self._errors[:2000]}")
        return self._path


@cache
def library_of(source: str, kind: str) -> Library:
    """The kernels in a source as functions for TVM's host code."""
    functions = kernels(source, kind)
    if kind == "metal":
        source = "".join(f"namespace {n} {{\n{text}\nEMULATED_KERNEL({n})\n}}\n" for n, text in functions.items())
    else:
        source += "".join(f"EMULATED_KERNEL({n})\n" for n in functions)
    return Library(source, kind)


@cache
def _headers(kind: str) -> Path:
    """All that sources include, compiled beforehand: that is half of the work for a small kernel."""
    path = Path(_session().name) / f"{kind}.h"
    names = {"cuda": ("cuda.h", "cuda_fp16.h", "mma.h"), "metal": ("metal_stdlib",)}[kind]
    path.write_text("".join(f"#include <{name}>\n" for name in names), encoding="utf-8")
    subprocess.run([*_compiler(kind), "-x", "c++-header", str(path), "-o", f"{path}.gch"], check=True)
    return path


def _compiler(kind: str) -> list[str]:
    headers = tvm_ffi.libinfo.find_include_path(), tvm_ffi.libinfo.find_dlpack_include_path()
    return ["g++", *_OPTIONS, *(f"-I{directory}" for directory in (HERE / kind, *headers))]


@cache
def _session() -> tempfile.TemporaryDirectory[str]:
    """Where libraries lie until the process ends."""
    return tempfile.TemporaryDirectory(prefix="llmserve-emulation-")
