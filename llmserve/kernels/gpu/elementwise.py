"""Norms, activations and gathers on GPUs. Sums are float32, and so is the residual sum between layers.

Oracles: tests/kernels/gpu.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from tvm.tirx import PrimFunc

from ...platforms import Gpu
from ..base import NormKind
from ..tir import T, build, f32, put, sized, when
from .threads import barrier, ceil_div, grid, local, reduce, shared

RESIDUAL = "float32"
"""The residual sum's dtype: dozens of layers add to it, and float16 would round each time."""
_THREADS = 128


def norm(name: str, width: int, kind: NormKind, gpu: Gpu, dtype: str, x_dtype: str, add: bool) -> PrimFunc:
    """x `x_dtype` [M, width], (residual float32 [M, width],) (weight float32 [width],) (bias float32 [width],)
    y `dtype` [M, width], sum float32 [M, width]: y = the norm of v = x (+ residual), which is also the sum."""
    threads = min(256, gpu.threads)

    def body() -> None:
        m = T.int64()
        x = sized("x", (m, width), x_dtype)
        residual = sized("residual", (m, width), RESIDUAL) if add else None
        weight = sized("weight", (width,), "float32") if kind.weight else None
        bias = sized("bias", (width,), "float32") if kind.bias else None
        y = sized("y", (m, width), dtype)
        total = sized("sum", (m, width), RESIDUAL)
        steps = -(-width // threads)
        with grid(threads, m) as (row, thread):
            kept, share, inverse, sums = local(steps), local(1), local(1), shared(threads)

            def each(body: Callable[[int, Any], None]) -> None:
                """`body(step, column)` for the thread's columns."""
                for step in range(steps):
                    i = step * threads + thread
                    with when(width % threads == 0 or step < steps - 1 or i < width):
                        body(step, i)

            def load(step: int, i: Any) -> None:
                value = T.cast(x[row, i], "float32")
                put(kept, value if residual is None else value + residual[row, i], step)
                put(total, kept[step], row, i)
                put(share, share[0] + (kept[step] if kind.centred else kept[step] * kept[step]), 0)

            def centre(step: int, i: Any) -> None:
                put(kept, kept[step] - inverse[0], step)
                put(share, share[0] + kept[step] * kept[step], 0)

            def store(step: int, i: Any) -> None:
                value = kept[step] * inverse[0]
                value = value if weight is None else value * weight[i]
                put(y, T.cast(value if bias is None else value + bias[i], dtype), row, i)

            put(share, f32(0), 0)
            each(load)
            put(sums, share[0], thread)
            reduce(sums, threads, thread, operator.add)
            if kind.centred:
                put(inverse, sums[0] * f32(1 / width), 0)  # the mean, for now
                put(share, f32(0), 0)
                each(centre)
                barrier()
                put(sums, share[0], thread)
                reduce(sums, threads, thread, operator.add)
            put(inverse, f32(1) / T.sqrt(sums[0] * f32(1 / width) + f32(kind.eps)), 0)
            each(store)

    return build(name, body)


def gated(name: str, width: int, activation: str, dtype: str) -> PrimFunc:
    """gate_up `dtype` [M, 2 · width], y `dtype` [M, width]: activation(gate) · up (Shazeer 2020); one of
    FUSED_ACTIVATIONS."""

    def body() -> None:
        m = T.int64()
        gate_up = sized("gate_up", (m, 2 * width), dtype)
        y = sized("y", (m, width), dtype)

        def at(row: Any, i: Any) -> None:
            gate, up = (T.cast(gate_up[row, i + first], "float32") for first in (0, width))
            # Either is gate / (1 + e^-z); e^z for negative z, so that nothing overflows.
            positive, rest, inner = local(1), local(1), local(1)
            twice = 2 * math.sqrt(2 / math.pi)
            cubic = gate * (f32(twice) + f32(twice * 0.044715) * gate * gate)
            put(inner, cubic if activation == "gelu_tanh" else gate, 0)
            put(rest, T.exp(-T.fabs(inner[0])), 0)
            put(positive, T.if_then_else(inner[0] >= f32(0), f32(1), rest[0]) / (f32(1) + rest[0]), 0)
            put(y, T.cast(gate * positive[0] * up, dtype), row, i)

        _each(m, width, at)

    return build(name, body)


def tanh(x: Any) -> Any:
    """tanh x = sign(x) · (1 - e) / (1 + e), e = e^-2|x|: nothing overflows, whatever a platform's own does."""
    e = T.exp(f32(-2) * T.fabs(x))
    return T.if_then_else(x >= f32(0), f32(1), f32(-1)) * (f32(1) - e) / (f32(1) + e)


def cap_logits(name: str, width: int, scale: float, cap: float) -> PrimFunc:
    """logits float32 [M, width], in place: x · scale, then cap · tanh(x / cap) unless cap is 0."""

    def body() -> None:
        m = T.int64()
        logits = sized("logits", (m, width), "float32")

        def at(row: Any, i: Any) -> None:
            value = logits[row, i] * f32(scale / cap if cap else scale)
            put(logits, tanh(value) * f32(cap) if cap else value, row, i)

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
