"""The cost of the webgpu plugin beside the kernels: the host's time per dispatch, a batch of tiny kernels, copies.

    python -m benchmarks.webgpu

Prints one line of JSON per measurement, medians over repetitions. The adapter is in the first line; on a software
adapter "gpu" is the same CPU.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llmserve import backends, toolchain

DISPATCHES = 500
REPETITIONS = 15


def median_ms(work: Callable[[], Any], repetitions: int = REPETITIONS) -> float:
    times = []
    for _ in range(repetitions):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3


def tiny_kernel(directory: Path) -> Any:
    """b[0:64] = a[0:64] * factor, as a loaded library's function."""
    import tvm
    from tvm.script import tirx as T

    @T.prim_func
    def scale(a: T.handle, b: T.handle, factor: T.float32):
        T.func_attr({"global_symbol": "scale", "tirx.noalias": True})
        A = T.match_buffer(a, (64,), "float32")
        B = T.match_buffer(b, (64,), "float32")
        for _ in T.thread_binding(1, thread="blockIdx.x"):
            for j in T.thread_binding(64, thread="threadIdx.x"):
                B[j] = A[j] * factor

    target = tvm.target.Target({"kind": "webgpu", "host": {"kind": "llvm"}})
    tvm.compile(tvm.IRModule({"scale": scale}), target=target).export_library(str(directory / "scale.so"))
    return tvm.runtime.load_module(str(directory / "scale.so"))["scale"]


def dispatches(scale: Any, device: Any) -> None:
    import tvm

    x, y = (tvm.runtime.tensor(np.ones(64, "float32"), device) for _ in range(2))
    host: list[float] = []

    def batch() -> None:
        began = time.perf_counter()
        for i in range(DISPATCHES // 2):  # each reads what the one before it wrote
            scale(x, y, float(i))
            scale(y, x, 1.0)
        host.append(time.perf_counter() - began)
        x.numpy()

    batch()
    host.clear()
    total = median_ms(batch)
    said = statistics.median(host) / DISPATCHES * 1e6
    print(json.dumps({"dispatches": DISPATCHES, "host_us_each": round(said, 2), "with_readback_ms": round(total, 3)}))
    one = median_ms(lambda: (scale(x, y, 1.0), y.numpy()), 100)
    print(json.dumps({"dispatches": 1, "with_readback_ms": round(one, 3)}))


def copies(device: Any) -> None:
    import tvm
    import tvm_ffi

    copy = tvm_ffi.get_global_func("runtime.TVMTensorCopyFromTo")
    for size in (4 << 10, 1 << 20, 64 << 20):
        host = tvm.runtime.tensor(np.ones(size, "int8"))
        here, there = (tvm.runtime.empty((size,), "int8", device) for _ in range(2))
        rates = {
            "to_device": median_ms(lambda: (copy(host, here), device.sync())),  # noqa: B023
            "from_device": median_ms(lambda: copy(here, host)),  # noqa: B023
            "within": median_ms(lambda: (copy(here, there), device.sync())),  # noqa: B023
        }
        print(json.dumps({"bytes": size} | {name: f"{size / ms / 1e6:.2f} GB/s" for name, ms in rates.items()}))


def main() -> None:
    toolchain.without_torch()
    info = backends.device_info("webgpu")
    import tvm

    print(json.dumps({name: info[name] for name in ("name", "type", "backend", "driver")}))
    device = tvm.device("webgpu")
    with tempfile.TemporaryDirectory() as directory:
        dispatches(tiny_kernel(Path(directory)), device)
    copies(device)
    print(json.dumps(backends.statistics("webgpu")))


if __name__ == "__main__":
    main()
