"""Devices that TVM's wheel can compile for but not run: `load` makes TVM know them.

It has to be called before a library that was compiled for such a device is loaded. It is not an entry point of TVM's
(`tvm.backends`), which would load every plugin into every process that imports TVM, and compile it there.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import UnsupportedError
from . import build, cuda

_lock = threading.Lock()
_loaded: dict[str, ctypes.CDLL] = {}


def load(device: str) -> None:
    """Makes TVM know `device` ("webgpu", "rocm"); compiles the plugin at first use. Devices that TVM
    brings are left alone, but for CUDA's libraries, which it does not look for.

    Raises UnsupportedError (a driver, a package or a compiler is missing) and ArtifactError (the plugin does not
    compile).
    """
    with _lock:
        if device == "cuda":
            cuda.load_runtime()
        if device not in build.BACKENDS or device in _loaded:
            return
        needs = build.BACKENDS[device].needs()
        plugin = build.obtain(device, needs)
        import tvm  # noqa: F401  # the plugin looks for TVM's symbols in the process

        for library in needs.libraries:
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        _loaded[device] = ctypes.CDLL(str(plugin))


def device_info(device: str) -> dict[str, Any]:
    """Facts of the device: name, vendor, driver, type, backend, and its limits and features as dictionaries.

    Raises what `load` raises, and UnsupportedError in the driver's words when there is no such device here.
    """
    info: dict[str, Any] = _call(device, "info")
    return info


def enable_graphs(device: str) -> None:
    """Has libraries that were compiled with TVM's CUDA graphs capture and launch graphs on `device` ("rocm").

    For processes that use no CUDA device: its runtime cannot be loaded afterwards. Raises what `load` raises.
    """
    _call(device, "enable_graphs")


def statistics(device: str) -> dict[str, int]:
    """Counters of the plugin: bytes allocated now and at most, allocations, dispatches, submissions, bind groups."""
    counters: dict[str, int] = _call(device, "statistics")
    return counters


@dataclass(frozen=True)
class Dispatch:
    """One kernel that ran.

    Attributes:
        scalars: its uniform block, as unsigned 32-bit words; the last is the number of blocks less one.
        bindings: of each tensor, its buffer's first address and bytes, and the offset and bytes of what is bound.
        microseconds: the GPU's time for it; negative where the adapter does not tell.
    """

    kernel: str
    workgroups: tuple[int, int, int]
    scalars: tuple[int, ...]
    bindings: tuple[tuple[int, int, int, int], ...]
    microseconds: float


@contextmanager
def trace(device: str) -> Iterator[list[Dispatch]]:
    """The dispatches of the block to `device` ("webgpu"), in order; the list is filled when the block ends.

    Each kernel is timed by itself and each batch is waited for, so the block takes longer than without.
    """
    _call(device, "start_trace")
    dispatches: list[Dispatch] = []
    try:
        yield dispatches
    finally:
        dispatches += [Dispatch(**one) for one in _call(device, "stop_trace")]


def _call(device: str, function: str) -> Any:
    load(device)
    import tvm_ffi

    try:
        return _plain(tvm_ffi.get_global_func(f"llmserve.{device}.{function}")())
    except (RuntimeError, ValueError) as error:
        raise UnsupportedError(str(error).splitlines()[0]) from error


def _plain(value: Any) -> Any:
    """TVM's maps, arrays and strings as Python's own."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, str):
        return str(value)
    return tuple(map(_plain, value)) if isinstance(value, Sequence) else value
