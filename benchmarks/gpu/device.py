"""A GPU on the side without a compiler: TVM's runtime, libraries that were compiled elsewhere, timing.

Of llmserve, only data and numpy code is used here. `Folder` is what prepare.py wrote.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_CHUNK = 64 << 20  # bytes of one copy to the device


class NoDevice(Exception):
    """There is no device to run on here; the message says why."""


class Folder:
    """A prepared folder: its manifest, and the device that it is for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text(encoding="utf-8"))

    def device(self) -> Any:
        """TVM's device, its runtime loaded from the folder. Raises NoDevice, and RuntimeError for too old a driver."""
        kind = self.manifest["device"]
        if kind == "cuda":
            _cuda_driver()
        for name in self.manifest["load_before"]:
            ctypes.CDLL(str(self.path / name), mode=ctypes.RTLD_GLOBAL)
        import tvm
        from tvm_ffi.libinfo import load_lib_ctypes

        libraries = [Path(tvm.__file__).parent / "lib"]
        for name in self.manifest["tvm_libraries"]:
            load_lib_ctypes(package="tvm", target_name=name, extra_lib_paths=libraries, mode="RTLD_LOCAL")
        for name in self.manifest["load_after"]:
            ctypes.CDLL(str(self.path / name))
        device = tvm.device(kind)
        try:
            there = bool(device.exist)
        except (RuntimeError, ValueError) as error:
            raise NoDevice(f"the {kind} device does not start: {str(error).splitlines()[0]}") from error
        if not there and kind == "cuda":
            raise RuntimeError("NVIDIA's driver finds a GPU, and CUDA 13 cannot use it: it must be 580 or later")
        if not there:
            raise NoDevice(f"there is no {kind} device")
        return device

    def describe(self, device: Any) -> dict[str, Any]:
        """The facts about the device, for the report."""
        if self.manifest["device"] != "cuda":
            import tvm_ffi

            info = tvm_ffi.get_global_func(f"llmserve.{self.manifest['device']}.info")()
            return {name: str(info[name]) for name in ("name", "type", "backend", "driver")}
        facts = (
            "device_name",
            "compute_version",
            "multi_processor_count",
            "total_global_memory",
            "l2_cache_size_bytes",
        )
        return {name: _fact(device, name) for name in facts}


def _fact(device: Any, name: str) -> Any:
    try:
        value = getattr(device, name)
    except (AttributeError, RuntimeError, ValueError):
        return None
    return value if value is None or isinstance(value, int) else str(value)


def _cuda_driver() -> None:
    try:
        driver = ctypes.CDLL("libcuda.so.1", mode=ctypes.RTLD_GLOBAL)
    except OSError:
        raise NoDevice("there is no NVIDIA driver (libcuda.so.1)") from None
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        raise NoDevice("NVIDIA's driver finds no GPU")


def load(path: Path) -> Any:
    import tvm

    return tvm.runtime.load_module(str(path))


def kernel(function: Any, device: Any) -> Callable[..., None]:
    """A function of a library over numpy arrays: those that can be written are, with what it left in them."""
    import tvm

    def run(*arrays: np.ndarray) -> None:
        tensors = [tvm.runtime.tensor(array, device) for array in arrays]
        function(*tensors)
        for array, tensor in zip(arrays, tensors, strict=True):
            if array.flags.writeable:
                array[...] = tensor.numpy()

    return run


def put(array: np.ndarray, device: Any) -> Any:
    import tvm

    return tvm.runtime.tensor(np.ascontiguousarray(array), device)


def filled(shape: Sequence[int], dtype: str, device: Any, block: np.ndarray) -> Any:
    """A tensor on the device of a block's values, over and over: large ones need not be made on the host."""
    import tvm

    tensor = tvm.runtime.empty(tuple(shape), dtype, device)
    width = np.dtype(dtype).itemsize
    count, step = int(np.prod(shape)), min(block.size, _CHUNK // width)
    for first in range(0, count, step):
        size = min(step, count - first)
        tensor._create_view((size,), dtype, first * width).copyfrom(block[:size])
    return tensor


def seconds(call: Callable[[], Any], device: Any, at_least: float = 0.03, repetitions: int = 7) -> float:
    """The median time of a call, by the clock on the wall: so many calls at a time that waiting for the device, which
    ends each batch of them, is no part of it."""

    def batch(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            call()
        device.sync()
        return time.perf_counter() - began

    batch(1)
    count, took = 1, batch(1)
    while took < at_least and count < 4096:
        count = min(4096, max(2 * count, int(count * at_least / max(took, 1e-6))))
        took = batch(count)
    if took > 5:  # a software device: once is enough
        return took / count
    return statistics.median([took, *(batch(count) for _ in range(repetitions - 1))]) / count
