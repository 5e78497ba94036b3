"""The webgpu plugin on whatever adapter there is (a software one in CI), against numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tvm
from tvm.script import tirx as T

from llmserve import backends

Build = Callable[[tvm.tirx.PrimFunc], tvm.runtime.Module]


@T.prim_func
def scale(a: T.handle, b: T.handle, factor: T.float32, n: T.int32):
    T.func_attr({"global_symbol": "scale", "tirx.noalias": True})
    A = T.match_buffer(a, (n,), "float32")
    B = T.match_buffer(b, (n,), "float32")
    for i in T.thread_binding((n + 63) // 64, thread="blockIdx.x"):
        for j in T.thread_binding(64, thread="threadIdx.x"):
            if i * 64 + j < n:
                B[i * 64 + j] = A[i * 64 + j] * factor


def random(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-4, 4, shape).astype(dtype)


@pytest.mark.parametrize("n", [1, 5, 64, 65, 100_003])
def test_a_kernel_with_scalars(webgpu: tvm.runtime.Device, build: Build, n: int) -> None:
    """float32 products of the same two numbers are the same everywhere, so equality is exact."""
    x = random(n)
    out = tvm.runtime.empty((n,), "float32", webgpu)
    build(scale)["scale"](tvm.runtime.tensor(x, webgpu), out, 2.5, n)
    np.testing.assert_array_equal(out.numpy(), x * np.float32(2.5))


def test_the_device_is_described(webgpu: tvm.runtime.Device) -> None:
    info = backends.device_info("webgpu")
    assert webgpu.exist and webgpu.device_name == info["name"] and info["type"] != ""
    assert webgpu.max_threads_per_block == info["limits"]["maxComputeInvocationsPerWorkgroup"] >= 128
