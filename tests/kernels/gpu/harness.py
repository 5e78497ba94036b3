"""Compiles one PrimFunc for a platform and runs it: WGSL on whatever adapter there is (a software one will do), CUDA
and Metal emulated on the CPU."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm

from llmserve import backends
from llmserve.compile.host import kernel_set, link_host_code
from llmserve.compile.pipeline import build_context
from llmserve.errors import LLMServeError
from llmserve.platforms import PLATFORMS, Gpu

from . import emulation

ARCHS = {"webgpu": "f16", "cuda": "sm_90", "metal": "apple"}
GPUS: dict[str, Gpu] = {name: PLATFORMS[name].gpus[arch] for name, arch in ARCHS.items()}
DTYPES = ("float16", "float32")
# A result is rounded once to its dtype: half a unit in the last place; the float32 sums before it lose less.
ROUNDING = {"float16": 2.0**-11, "float32": 2e-6}

each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_platform = pytest.mark.parametrize("platform", ARCHS)


def each_case(kinds: Iterable[str], in_float32: Iterable[str]) -> pytest.MarkDecorator:
    """Every kind, dtype and platform; emulated float32 for some kinds only, as compiling takes long: it differs from
    float16 in casts, and in that matrix units have none of it."""
    cases = itertools.product(kinds, DTYPES, ARCHS)
    some = frozenset(in_float32)
    kept = [(k, d, p) for k, d, p in cases if d == "float16" or p == "webgpu" or k in some]
    return pytest.mark.parametrize(("kind", "dtype", "platform"), kept, ids=map("-".join, kept))


@cache
def _missing_webgpu() -> str | None:
    try:
        backends.device_info("webgpu")
    except LLMServeError as error:
        return f"WebGPU: {error}"
    return None


def needs_device(platform: str = "webgpu") -> None:
    """Skips the test where the platform's kernels cannot be run."""
    if reason := _missing_webgpu() if platform == "webgpu" else emulation.missing():
        pytest.skip(reason)


def needs_float16() -> None:
    """Skips the test where there is no WebGPU device, or its driver has no float16."""
    needs_device()
    info = backends.device_info("webgpu")
    if not info["features"]["shader-f16"]:
        pytest.skip(f"float16 on WebGPU: {info['name']} by {info['backend']} has no shader-f16; a newer driver may")


def target_of(platform: str, dtype: str) -> dict[str, Any]:
    """What TVM compiles for."""
    return dict(kernel_set(PLATFORMS[platform], ARCHS[platform], dtype)[1])


def compiled(func: tvm.tirx.PrimFunc, dtype: str, platform: str) -> Callable[..., None]:
    """A callable over numpy arrays; those that can be written are, with what the kernel left in them."""
    needs_device(platform)
    target = target_of(platform, dtype)
    return _on_webgpu(func, target) if platform == "webgpu" else emulation.emulated(func, target)


def _on_webgpu(func: tvm.tirx.PrimFunc, target: dict[str, Any]) -> Callable[..., None]:
    name = str(func.attrs["global_symbol"])
    with build_context():
        executable = tvm.compile(tvm.IRModule({name: func}), target=tvm.target.Target(target))
    if "enable f16;" in executable.mod.imports[0].inspect_source():
        needs_float16()
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "kernel.so")
        executable.export_library(path, fcompile=link_host_code)
        call = tvm.runtime.load_module(path)[name]
    device = tvm.device("webgpu")

    def run(*arrays: np.ndarray) -> None:
        tensors = [tvm.runtime.tensor(array, device) for array in arrays]
        call(*tensors)
        for array, tensor in zip(arrays, tensors, strict=True):
            if array.flags.writeable:
                array[...] = tensor.numpy()

    return run


def constant(array: np.ndarray) -> np.ndarray:
    """Marks an input, so that nothing is read back."""
    array = np.ascontiguousarray(array)
    array.flags.writeable = False
    return array
