"""Recordings of a library's dispatches to the webgpu device, as files that a browser can run again (web/replay.js).

A recording is the kernels' WGSL, the buffers, what was in them, the dispatches in order, and results to compare with:
the device's part of a run, without TVM and without the host's. Sizes are those of the run that was recorded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UnsupportedError
from . import Dispatch, trace

RECORDING_FILE = "recording.json"
DATA_FILE = "recording.bin"
VERSION = 1
_RESULTS = ("float32", "int32", "uint32")  # what a browser has typed arrays for


def record(
    directory: Path,
    library: Any,
    inputs: Mapping[str, Any],
    run: Callable[[], Mapping[str, Any]],
    expected: Mapping[str, np.ndarray] | None = None,
    tolerance: float = 0.0,
) -> None:
    """Runs and records into `directory`, which is made.

    Args:
        library: the loaded module whose kernels run.
        inputs: tensors on the device whose contents the kernels read; other memory is zeros when they begin.
        run: calls functions of the library and returns result tensors by name: float32, int32 or uint32.
        expected: what the results should be; by default what they were here.
        tolerance: by how much a result may be away from that, absolute.

    Raises UnsupportedError where a kernel has one buffer both to read and to write, which browsers refuse.
    """
    before = [(tensor, tensor.numpy()) for tensor in inputs.values()]
    with trace("webgpu") as dispatches:
        results = run()
    kernels = _kernels(library)
    buffers = _buffers(dispatches, kernels)
    data = bytearray()

    def put(array: np.ndarray) -> int:
        data.extend(bytes(-len(data) % 4))
        start = len(data)
        data.extend(np.ascontiguousarray(array).tobytes())
        return start

    def place(tensor: Any) -> dict[str, int]:
        address = tensor.data_ptr()
        index, (base, _) = next(
            (i, (base, size)) for i, (base, size) in enumerate(buffers.items()) if base <= address < base + size
        )
        return {"buffer": index, "offset": address - base}

    images: dict[int, np.ndarray] = {}
    for tensor, array in before:
        where = place(tensor)
        image = images.setdefault(where["buffer"], np.zeros(list(buffers.values())[where["buffer"]], "uint8"))
        image[where["offset"] : where["offset"] + array.nbytes] = np.frombuffer(array.tobytes(), "uint8")
    contents = [{"buffer": index, "at": put(image)} for index, image in images.items()]
    outcomes = []
    for name, tensor in results.items():
        if str(tensor.dtype) not in _RESULTS:
            raise UnsupportedError(f"The result {name} is {tensor.dtype}; a recording holds {', '.join(_RESULTS)}.")
        wanted = np.asarray(tensor.numpy() if expected is None else expected[name], str(tensor.dtype))
        outcomes.append(place(tensor) | {"name": name, "dtype": str(tensor.dtype), "at": put(wanted), "n": wanted.size})
    order = {base: index for index, base in enumerate(buffers)}
    used = {one.kernel for one in dispatches}
    recording = {
        "version": VERSION,
        "features": ["shader-f16"] if any("enable f16" in kernels[name]["code"] for name in used) else [],
        "kernels": {name: kernels[name] for name in sorted(used)},
        "buffers": list(buffers.values()),
        "contents": contents,
        "dispatches": [
            {
                "kernel": one.kernel,
                "workgroups": one.workgroups,
                "scalars": one.scalars,
                "bindings": [[order[base], offset, size] for base, _, offset, size in one.bindings],
            }
            for one in dispatches
        ],
        "results": outcomes,
        "tolerance": tolerance,
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / DATA_FILE).write_bytes(data)
    (directory / RECORDING_FILE).write_text(json.dumps(recording, indent=1) + "\n", encoding="utf-8")


def _kernels(library: Any) -> dict[str, dict[str, Any]]:
    """WGSL and, for each tensor, whether it is written, of all kernels below `library`."""
    found: dict[str, dict[str, Any]] = {}
    for module in library.imports:
        if module.kind == "webgpu":
            for name, kernel in module["webgpu.kernels"]().items():
                found[str(name)] = {"code": str(kernel["code"]), "writes": [bool(w) for w in kernel["writes"]]}
        found |= _kernels(module)
    return found


def _buffers(dispatches: list[Dispatch], kernels: Mapping[str, Mapping[str, Any]]) -> dict[int, int]:
    """Bytes of each buffer that is used, by its address, in order of first use."""
    buffers: dict[int, int] = {}
    for one in dispatches:
        written: dict[int, bool] = {}
        for (base, size, _, _), writes in zip(one.bindings, kernels[one.kernel]["writes"], strict=True):
            buffers[base] = size
            if written.setdefault(base, writes) != writes:
                raise UnsupportedError(f"Kernel {one.kernel} reads and writes one buffer, which no browser lets it.")
    return buffers
