"""Norms, activations and gathers on GPUs. Sums are float32, and so is the residual sum between layers.

Oracles: tests/kernels/gpu.
"""

from __future__ import annotations

import operator
from typing import Any

from tvm.tirx import PrimFunc

from ...platforms import Gpu
from ..tir import T, build, f32, put, sized, when
from .threads import ceil_div, fold, grid, local, shared

RESIDUAL = "float32"
"""The residual sum's dtype: dozens of layers add to it, and float16 would round each time."""
_THREADS = 128


def rms_norm(name: str, width: int, eps: float, gpu: Gpu, dtype: str, x_dtype: str, add: bool) -> PrimFunc:
    """x `x_dtype` [M, width], (residual float32 [M, width],) weight float32 [width], y `dtype` [M, width],
    sum float32 [M, width]: y = v / √(mean(v²) + eps) · weight, of v = x (+ residual), which is also the sum
    (Zhang & Sennrich 2019)."""
    threads = min(256, gpu.threads)

    def body() -> None:
        m = T.int64()
        x = sized("x", (m, width), x_dtype)
        residual = sized("residual", (m, width), RESIDUAL) if add else None
        weight = sized("weight", (width,), "float32")
        y = sized("y", (m, width), dtype)
        total = sized("sum", (m, width), RESIDUAL)
        steps = -(-width // threads)
        with grid(threads, m) as (row, thread):
            kept, square, sums = local(steps), local(1), shared(threads)
            put(square, f32(0), 0)
            for step in range(steps):
                i = step * threads + thread
                with when(width % threads == 0 or step < steps - 1 or i < width):
                    value = T.cast(x[row, i], "float32")
                    put(kept, value if residual is None else value + residual[row, i], step)
                    put(total, kept[step], row, i)
                    put(square, square[0] + kept[step] * kept[step], 0)
            put(sums, square[0], thread)
            fold(sums, threads, thread, operator.add)
            put(square, f32(1) / T.sqrt(sums[0] * f32(1 / width) + f32(eps)), 0)
            for step in range(steps):
                i = step * threads + thread
                with when(width % threads == 0 or step < steps - 1 or i < width):
                    put(y, T.cast(kept[step] * square[0] * weight[i], dtype), row, i)

    return build(name, body)


def gated_silu(name: str, width: int, dtype: str) -> PrimFunc:
    """gate_up `dtype` [M, 2 · width], y `dtype` [M, width]: silu(gate) · up (Shazeer 2020)."""

    def body() -> None:
        m = T.int64()
        gate_up = sized("gate_up", (m, 2 * width), dtype)
        y = sized("y", (m, width), dtype)

        def at(row: Any, i: Any) -> None:
            gate, up = (T.cast(gate_up[row, i + first], "float32") for first in (0, width))
            # silu(x) = x / (1 + e^-x); e^x for negative x, so that nothing overflows.
            positive, rest = local(1), local(1)
            put(rest, T.exp(-T.fabs(gate)), 0)
            put(positive, T.if_then_else(gate >= f32(0), f32(1), rest[0]) / (f32(1) + rest[0]), 0)
            put(y, T.cast(gate * positive[0] * up, dtype), row, i)

        _each(m, width, at)

    return build(name, body)


def take_rows(name: str, widths: tuple[int, int], dtype: str) -> PrimFunc:
    """The same rows of two tensors: x `dtype` [M, its width], r float32 likewise, rows int32 [R], x[rows], r[rows]."""

    def body() -> None:
        m, count = T.int64(), T.int64()
        kinds = list(zip("xr", widths, (dtype, RESIDUAL), strict=True))
        x, r = (sized(name, (m, width), kind) for name, width, kind in kinds)
        rows = sized("rows", (count,), "int32")
        x_taken, r_taken = (sized(f"{name}_taken", (count, width), kind) for name, width, kind in kinds)

        def at(row: Any, i: Any) -> None:
            with when(widths[0] >= widths[1] or i < widths[0]):
                put(x_taken, x[rows[row], i], row, i)
            with when(widths[1] >= widths[0] or i < widths[1]):
                put(r_taken, r[rows[row], i], row, i)

        _each(count, max(widths), at)

    return build(name, body)


def _each(m: Any, width: int, at: Any) -> None:
    """`at(row, column)` for every element of an [m, width] tensor."""
    with grid(_THREADS, m, ceil_div(width, _THREADS)) as (row, part, thread):
        i = part * _THREADS + thread
        with when(width % _THREADS == 0 or i < width):
            at(row, i)
