"""Compiles one PrimFunc to WGSL and runs it, on whatever adapter there is: a software one will do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tvm

from llmserve import backends
from llmserve.compile.host import kernel_set, link_host_code
from llmserve.compile.pipeline import build_context
from llmserve.errors import LLMServeError
from llmserve.platforms import PLATFORMS, Gpu

WEBGPU = PLATFORMS["webgpu"]
GPU: Gpu = WEBGPU.gpus["f16"]
DTYPES = ("float16", "float32")
# A result is rounded once to its dtype: half a unit in the last place; the float32 sums before it lose less.
ROUNDING = {"float16": 2.0**-11, "float32": 2e-6}


@cache
def missing() -> str | None:
    """Why nothing can be run here."""
    try:
        backends.device_info("webgpu")
    except LLMServeError as error:
        return str(error)
    return None


def needs_device() -> None:
    if reason := missing():
        pytest.skip(f"no WebGPU device: {reason}")


def compiled(func: tvm.tirx.PrimFunc, dtype: str = "float32") -> Callable[..., None]:
    """A callable over numpy arrays; those that can be written are, with what the kernel left in them."""
    needs_device()
    target = tvm.target.Target(dict(kernel_set(WEBGPU, None, dtype)[1]))
    name = str(func.attrs["global_symbol"])
    with build_context():
        executable = tvm.compile(tvm.IRModule({name: func}), target=target)
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
