"""The webgpu plugin's memory: copies of all sizes and places, addresses, limits."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import tvm
import tvm_ffi

from llmserve import backends

from . import wgsl

Device = tvm.runtime.Device
copy = tvm_ffi.get_global_func("runtime.TVMTensorCopyFromTo")


def random_bytes(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-128, 128, n, dtype="int8")


def place(tensor: tvm.runtime.Tensor, start: int, size: int) -> tvm.runtime.Tensor:
    return tensor._create_view((size,), tensor.dtype, relative_byte_offset=start)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 127, 4097, 262_143, 262_145, 300_001, 33_554_435])
def test_there_and_back(webgpu: Device, n: int) -> None:
    x = random_bytes(n)
    np.testing.assert_array_equal(tvm.runtime.tensor(x, webgpu).numpy(), x)


@pytest.mark.parametrize("dtype", ["float16", "float32", "int64", "float64", "bool"])
@pytest.mark.parametrize("shape", [(), (3,), (7, 5)])
def test_every_type_is_stored(webgpu: Device, dtype: str, shape: tuple[int, ...]) -> None:
    x = np.asarray(np.random.default_rng(0).normal(size=shape) * 9).astype(dtype)
    tensor = tvm.runtime.tensor(x, webgpu)
    np.testing.assert_array_equal(tensor.numpy(), x)
    np.testing.assert_array_equal(tensor.copyto(tvm.cpu()).numpy(), x)


@pytest.mark.parametrize("size", [1, 3, 4, 61, 5000, 300_000])
@pytest.mark.parametrize("to", [0, 1, 2, 7, 64])
def test_writes_leave_their_neighbours_alone(webgpu: Device, size: int, to: int) -> None:
    whole, part = random_bytes(300_100), random_bytes(size, seed=1)
    tensor = tvm.runtime.tensor(whole, webgpu)
    copy(tvm.runtime.tensor(part), place(tensor, to, size))
    whole[to : to + size] = part
    np.testing.assert_array_equal(tensor.numpy(), whole)
    np.testing.assert_array_equal(place(tensor, to, size).numpy(), part)


@pytest.mark.parametrize("size", [1, 3, 4, 61, 5000])
@pytest.mark.parametrize("start", [0, 1, 2, 64])
@pytest.mark.parametrize("to", [0, 3, 128])
@pytest.mark.parametrize("same", [False, True])
def test_copies_within_the_device(webgpu: Device, size: int, start: int, to: int, same: bool) -> None:
    x, y = random_bytes(20_000), random_bytes(20_000, seed=1)
    source = tvm.runtime.tensor(x, webgpu)
    target = source if same else tvm.runtime.tensor(y, webgpu)
    to += 10_000
    copy(place(source, start, size), place(target, to, size))
    expected = x if same else y
    expected[to : to + size] = x[start : start + size]
    np.testing.assert_array_equal(target.numpy(), expected)


def test_large_copies_within_the_device_go_in_parts(webgpu: Device) -> None:
    n = (4 << 20) * 2 + 77  # more than two of the parts that bytes are moved in
    x = random_bytes(2 * n + 9)
    tensor = tvm.runtime.tensor(x, webgpu)
    copy(place(tensor, 1, n), place(tensor, n + 4, n))
    x[n + 4 : 2 * n + 4] = x[1 : n + 1]
    np.testing.assert_array_equal(tensor.numpy(), x)


def test_memory_is_counted_and_freed(webgpu: Device) -> None:
    before = backends.statistics("webgpu")
    tensors = [tvm.runtime.empty((1000, 1000), "float32", webgpu) for _ in range(5)]
    held = backends.statistics("webgpu")
    assert held["allocated_bytes"] - before["allocated_bytes"] == 5 * 4_000_000
    assert held["allocations"] - before["allocations"] == 5
    del tensors
    after = backends.statistics("webgpu")
    assert (after["allocated_bytes"], after["allocations"]) == (before["allocated_bytes"], before["allocations"])


def test_what_does_not_fit_is_refused(webgpu: Device) -> None:
    most = backends.device_info("webgpu")["limits"]["maxBufferSize"]
    with pytest.raises(MemoryError, match=f"does not fit one buffer of this GPU .{most} bytes at most"):
        tvm.runtime.empty((most,), "int8", webgpu)
    assert tvm.runtime.empty((8,), "int8", webgpu).numpy().shape == (8,)


def test_there_is_one_device(webgpu: Device) -> None:
    with pytest.raises(ValueError, match="There is one WebGPU device, webgpu:0"):
        tvm.runtime.empty((8,), "int8", tvm.device("webgpu", 1))


def test_a_tensor_that_no_kernel_sees_whole(webgpu: Device) -> None:
    most = backends.device_info("webgpu")["limits"]["maxStorageBufferBindingSize"]
    if most > 1 << 30:
        pytest.skip("this adapter lets kernels see tensors that are too large for a test")
    code = """@group(0) @binding(0) var<storage, read_write> a : array<u32>;
    @compute @workgroup_size(1) fn first() { a[0] = 7; }"""
    kernel = wgsl.load(wgsl.device_bytes("first", code, [1]))["first"]
    tensor = tvm.runtime.empty((most + 4,), "int8", webgpu)
    with pytest.raises(ValueError, match=f"Argument 0 of kernel first has {most + 4} bytes; .* sees {most} of"):
        kernel(tensor, 1, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's memory")
def test_memory_that_is_not_there(webgpu: Device) -> None:
    """On a software adapter: the process may have 3 GB more, and what it gives back can be had again."""
    if backends.device_info("webgpu")["type"] != "software":
        pytest.skip("a GPU's memory is not the process's")
    code = """
import resource
from llmserve import backends, toolchain
toolchain.without_torch()
backends.load("webgpu")
import tvm
device, held = tvm.device("webgpu"), []
tvm.runtime.empty((1,), "int8", device)
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (3 << 30),) * 2)
try:
    for _ in range(4):
        held.append(tvm.runtime.empty((1 << 30,), "int8", device))
except MemoryError as error:
    print(len(held), error)
held.clear()
print(tvm.runtime.empty((1 << 30,), "int8", device).shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "the GPU is out of memory" in done.stdout and done.stdout.rstrip().endswith("(1073741824,)")
