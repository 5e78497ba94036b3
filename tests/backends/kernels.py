"""Small kernels in TIR that the tests of GPU plugins run."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.script import tirx as T


@T.prim_func
def scale(a: T.handle, b: T.handle, factor: T.float32, n: T.int32):
    T.func_attr({"global_symbol": "scale", "tirx.noalias": True})
    A = T.match_buffer(a, (n,), "float32")
    B = T.match_buffer(b, (n,), "float32")
    for i in T.thread_binding((n + 63) // 64, thread="blockIdx.x"):
        for j in T.thread_binding(64, thread="threadIdx.x"):
            if i * 64 + j < n:
                B[i * 64 + j] = A[i * 64 + j] * factor


@T.prim_func
def increase(a: T.handle, b: T.handle, n: T.int32):
    """b += a"""
    T.func_attr({"global_symbol": "increase", "tirx.noalias": True})
    A = T.match_buffer(a, (n,), "float32")
    B = T.match_buffer(b, (n,), "float32")
    for i in T.thread_binding((n + 63) // 64, thread="blockIdx.x"):
        for j in T.thread_binding(64, thread="threadIdx.x"):
            if i * 64 + j < n:
                B[i * 64 + j] = B[i * 64 + j] + A[i * 64 + j]


@T.prim_func
def number_blocks(b: T.handle, blocks: T.int32, n: T.int32):
    """Every block adds its number, one up, to its own element; blocks that were not asked for would be seen."""
    T.func_attr({"global_symbol": "number_blocks", "tirx.noalias": True})
    B = T.match_buffer(b, (n,), "int32")
    for i in T.thread_binding(blocks, thread="blockIdx.x"):
        for _ in T.thread_binding(1, thread="threadIdx.x"):
            B[i] = B[i] + i + 1


def add(dtype: str) -> tvm.tirx.PrimFunc:
    """c = a + b, elementwise, of any length."""
    kind: Any = dtype

    @T.prim_func
    def add(a: T.handle, b: T.handle, c: T.handle):
        T.func_attr({"global_symbol": "add", "tirx.noalias": True})
        n = T.int32()
        A = T.match_buffer(a, (n,), kind)
        B = T.match_buffer(b, (n,), kind)
        C = T.match_buffer(c, (n,), kind)
        for i in T.thread_binding((n + 63) // 64, thread="blockIdx.x"):
            for j in T.thread_binding(64, thread="threadIdx.x"):
                if i * 64 + j < n:
                    C[i * 64 + j] = A[i * 64 + j] + B[i * 64 + j]

    return add
