"""Scripts that tests of the rocm plugin run in processes of their own, where the only libamdhip64 is the fake one.

    python -m tests.backends.hip_scripts NAME

Each prints its result as JSON. Compiling for AMD needs no ROCm here: nothing is linked with its device library, and the
object file stands for the code object.
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

from llmserve import backends, toolchain

toolchain.without_torch()
backends.load("rocm")

import numpy as np  # noqa: E402
import tvm  # noqa: E402
import tvm_ffi  # noqa: E402
from tvm import relax  # noqa: E402

from . import kernels  # noqa: E402

TARGET = {"kind": "rocm", "mcpu": "gfx1100", "host": {"kind": "llvm"}}
X = np.arange(100, dtype="float32")


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def device_module(name: str, types: list[tuple[int, int, int]], tags: list[str], image: bytes = b"\x7fELF") -> Any:
    """A device module of one kernel, as TVM writes it. `types` are TVM's (code, bits, lanes)."""
    info = [
        _text(name.encode()),
        struct.pack("<Q", len(types)) + b"".join(struct.pack("<BBH", *one) for one in types),
        struct.pack("<Q", len(tags)) + b"".join(_text(tag.encode()) for tag in tags),
        struct.pack("<Q", 0),
    ]
    data = b"".join([_text(b"hsaco"), struct.pack("<Q", 1), _text(name.encode()), *info, _text(image)])
    return tvm_ffi.get_global_func("ffi.Module.load_from_bytes.hip")(data)


GRAPHS = (
    *("ToNonDataflow", "RemovePurityChecking", "CallTIRRewrite", "StaticPlanBlockMemory", "RewriteCUDAGraph"),
    *("LowerAllocTensor", "KillAfterLastUse", "LowerRuntimeBuiltin", "ComputePrimValue", "VMShapeLower"),
    "AttachGlobalSymbol",
)


def loaded(module: tvm.IRModule) -> Any:
    """Compiled for AMD, exported and loaded. What is Relax in it is lowered with graphs."""
    tvm_ffi.register_global_func("tvm_callback_rocm_bitcode_path", lambda: tvm.runtime.convert([]), override=True)
    tvm_ffi.register_global_func("tvm_callback_rocm_link", lambda code: bytes(code), override=True)
    module = tvm.tirx.transform.ForceNarrowIndexToInt32()(module)
    target = tvm.target.Target(TARGET)
    passes = tvm.transform.Sequential([getattr(relax.transform, name)() for name in GRAPHS])
    config = {"relax.backend.use_cuda_graph": True}
    with target, tvm.transform.PassContext(config=config), tempfile.TemporaryDirectory() as directory:
        made = tvm.compile(module, target=target, relax_pipeline=passes)
        path = str(Path(directory) / "library.so")
        made.export_library(path)
        return tvm.runtime.load_module(path)


def failure(work: Any) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return "nothing was raised"


def describe() -> Any:
    device = tvm.device("rocm", 1)
    attributes = ["max_threads_per_block", "warp_size", "max_shared_memory_per_block", "compute_version"]
    attributes += ["device_name", "max_clock_rate", "multi_processor_count", "max_thread_dimensions"]
    attributes += ["l2_cache_size_bytes", "total_global_memory", "available_global_memory"]
    exist = [tvm.device("rocm", i).exist for i in range(3)]
    return {"exist": exist, "info": backends.device_info("rocm"), **{a: getattr(device, a) for a in attributes}}


def compiled() -> Any:
    """A library with host code of its own, on both devices."""
    library, results = loaded(tvm.IRModule({"scale": kernels.scale})), []
    for number in (0, 1, 0):
        device = tvm.device("rocm", number)
        out = tvm.runtime.empty((100,), "float32", device)
        library["scale"](tvm.runtime.tensor(X, device), out, 2.5, 100)
        results.append(bool((out.numpy() == X * np.float32(2.5)).all()))
    return results


def packed() -> Any:
    """Arguments of all sizes, and a launch in all dimensions with dynamic shared memory."""
    types = [(0, 8, 1), (3, 64, 1), (0, 16, 1), (2, 32, 1), (1, 8, 1), (2, 64, 1), (6, 8, 1), (0, 32, 1), (0, 64, 1)]
    tags = ["blockIdx.z", "blockIdx.y", "blockIdx.x", "threadIdx.y", "threadIdx.x", "tirx.use_dyn_shared_memory"]
    kernel = device_module("packed_kernel", types, tags)["packed_kernel"]
    kernel(-2, None, -3, 1.5, 200, -2.25, True, -4, 1 << 40, 4, 3, 2, 8, 16, 4096)
    kernel(-2, None, -3, 1.5, 200, -2.25, True, -4, 1 << 40, 4, 0, 2, 8, 16, 4096)  # no blocks: no launch
    return None


def errors() -> Any:
    device, pointer = tvm.device("rocm", 0), (3, 64, 1)
    launch = ["blockIdx.x", "threadIdx.x"]
    kernel = device_module("some_kernel", [pointer], launch)["some_kernel"]
    half = device_module("half_kernel", [(2, 16, 1)], launch)["half_kernel"]
    return [
        failure(lambda: kernel(None, 1, 2048)),
        failure(lambda: kernel(None, 1)),
        failure(lambda: kernel(3, 1, 1)),
        failure(lambda: half(1.0, 1, 1)),
        failure(lambda: device_module("absent_kernel", [pointer], launch)["absent_kernel"](None, 1, 1)),
        failure(lambda: device_module("k", [pointer], launch, b"no code")["k"](None, 1, 1)),
        failure(lambda: device_module("k", [pointer], ["clusterIdx.x"])),
        failure(lambda: tvm.runtime.empty((2 << 30,), "int8", device)),
        failure(lambda: tvm.runtime.empty((8,), "int8", tvm.device("rocm", 5))),
    ]


def streams() -> Any:
    device = tvm.device("rocm", 0)
    stream = device.create_raw_stream()
    device.set_raw_stream(stream)
    source, target = tvm.runtime.tensor(X, device), tvm.runtime.empty((100,), "float32", device)
    target.copyfrom(source)
    device.sync()
    device.sync(stream)
    device.set_raw_stream(0)
    tvm_ffi.get_global_func("runtime.Device_StreamSyncFromTo")(device, stream, 0)
    device.free_raw_stream(stream)
    other = tvm.runtime.empty((100,), "float32", tvm.device("rocm", 1))
    other.copyfrom(target)
    kernel = device_module("some_kernel", [], ["blockIdx.x"])
    seconds = kernel.time_evaluator("some_kernel", device, number=1, repeat=1)(1).results[0]
    return [bool((other.numpy() == X).all()), seconds]


def graph() -> Any:
    """A virtual machine whose compiler had TVM's graphs in mind: y = 16 x + x, of a fixed size."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((100,), "float32"))
    add = builder.add_func(kernels.add("float32").with_attr("tirx.is_scheduled", True), "add")
    tensor = relax.TensorType((100,), "float32")
    with builder.function("main", [x]):
        with builder.dataflow():
            sum_ = builder.emit(relax.call_tir(add, [x, x], tensor))
            for _ in range(3):
                sum_ = builder.emit(relax.call_tir(add, [sum_, sum_], tensor))
            out = builder.emit_output(relax.call_tir(add, [sum_, x], tensor))
        builder.emit_func_output(out)
    library = loaded(builder.get())
    backends.enable_graphs("rocm")
    device = tvm.device("rocm", 0)
    vm = relax.VirtualMachine(library, device)
    results = []
    for i in range(3):
        y = vm["main"](tvm.runtime.tensor(X + i, device))
        results.append(bool((y.numpy() == 17 * (X + i)).all()))
    return results


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))
