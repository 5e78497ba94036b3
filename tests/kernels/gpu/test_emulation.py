"""The emulation of GPUs itself: its arithmetic, and that it finds what a GPU may let pass."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import tvm_ffi

from .emulation import Guarded, library_of, shared_bytes
from .harness import needs_device


def launched(body, *arrays, threads=64, parameters="float* __restrict__ a"):
    """What a CUDA kernel of one block leaves in the arrays."""
    needs_device("cuda")
    source = f'extern "C" __global__ void __launch_bounds__({threads}) probe({parameters}) {{\n{body}\n}}\n'
    module = tvm_ffi.load_module(str(library_of(source, "cuda").wait()))
    guarded = [Guarded(array) for array in arrays]
    module["probe"](*(ctypes.c_void_p(memory.array.ctypes.data) for memory in guarded), 1, threads)
    for memory in guarded:
        memory.check()
    return [memory.array for memory in guarded]


def test_float16_is_rounded_to_nearest_even():
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    exact = halves.astype(np.float32)
    with np.errstate(all="ignore"):
        between = (exact + np.nextafter(halves, np.float16(np.inf)).astype(np.float32)) / 2
        values = np.concatenate([exact, between, np.nextafter(between, np.inf), np.nextafter(between, -np.inf)])
        expected = values.astype(np.float16)
    body = f"for (int i = threadIdx.x; i < {len(values)}; i += 64) {{ h[i] = half(a[i]); b[i] = float(h[i]); }}"
    parameters = "float* __restrict__ a, half* __restrict__ h, float* __restrict__ b"
    _, rounded, back = launched(
        body, values, np.zeros(len(values), np.float16), np.zeros_like(values), parameters=parameters
    )
    number = ~np.isnan(values)
    np.testing.assert_array_equal(rounded.view(np.uint16)[number], expected.view(np.uint16)[number])
    np.testing.assert_array_equal(back[number], expected[number].astype(np.float32))
    assert np.isnan(rounded[~number]).all()
    assert np.isnan(back[~number]).all()


@pytest.mark.parametrize("barrier", ["__syncthreads();", ""])
def test_a_missing_barrier_shows(barrier):
    body = f"""
      __shared__ alignas(64) float s[64];
      s[threadIdx.x] = threadIdx.x;
      {barrier}
      a[threadIdx.x] = s[63 - threadIdx.x];"""
    (a,) = launched(body, np.zeros(64, np.float32))
    assert (a == np.arange(64)[::-1]).all() == bool(barrier)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("if (threadIdx.x < 32) __syncthreads();", "a barrier that not all threads reach"),
        ("__shared__ alignas(64) float s[32]; s[threadIdx.x] = 0;", "an index outside its array"),
        ("a[threadIdx.x + 64] = 0;", "memory outside an array"),
        ("float4 v = *(float4*)(a + 1); a[threadIdx.x] = v.x;", "a misaligned pointer"),
        ("int i = (int)threadIdx.x + 2147483647; a[0] = i;", "an overflow"),
        ("a[0] = 1 << (threadIdx.x + 1);", "a shift by too much"),
        ("wmma::fill_fragment(c, 0.f); wmma::store_matrix_sync(a + 4, c, 16, wmma::mem_row_major);", "256 bits"),
        ("wmma::fill_fragment(c, 0.f); wmma::store_matrix_sync(a, c, 18, wmma::mem_row_major);", "a wmma stride of 18"),
        ("if (threadIdx.x < 16) wmma::fill_fragment(c, 0.f);", "the lanes of warp 0 disagree"),
    ],
)
def test_what_a_gpu_may_let_pass_is_an_error(body, complaint):
    fragment = "using namespace nvcuda; wmma::fragment<wmma::accumulator, 16, 16, 16, float> c;"
    with pytest.raises(RuntimeError, match=complaint):
        launched(f"{fragment}\n{body}", np.zeros(64, np.float32))


def test_a_write_beside_an_array_is_an_error():
    with pytest.raises(RuntimeError, match="beside an array"):
        launched("a[60 + threadIdx.x % 2] = 1;", np.zeros(60, np.float32))


def test_shared_memory_is_counted():
    kernel = 'extern "C" __global__ void __launch_bounds__(32) {}(float* __restrict__ a) {{\n{}\n}}\n'
    source = kernel.format("one", "  __shared__ alignas(64) half s[33];\n  __shared__ alignas(64) float t[16];")
    assert shared_bytes(source + kernel.format("two", "  a[0] = 1;"), "cuda") == {"one": 192, "two": 0}
