"""Matrix products y = x Wᵀ (+ b) on GPUs: weights are unpacked in registers or in shared memory, sums are float32.

One row, or a few, read each weight once: lanes stride over a row's groups, and their sums are reduced. Many rows use
the tiles of tiles.py. Oracle: `llmserve.quant.group.dequantize`, then a matmul in float64.
"""

from __future__ import annotations

import operator
from typing import Any

from tvm.tirx import PrimFunc

from ...platforms import Gpu
from ..tir import T, block, build, f32, put, sized, vec, when
from .layout import WeightLayout, WeightTensors
from .threads import barrier, ceil_div, grid, local, reduce, shared
from .tiles import many_rows

LANES = 32  # threads that share an output row
FEW_ROWS = 16  # rows of x up to which reading the weights is what takes the time


def linear(name: str, layout: WeightLayout, gpu: Gpu, bias: bool, out_dtype: str) -> PrimFunc:
    """x [M, K] in the layout's dtype, its parameters, (b float32 [N],) y `out_dtype` [M, N]."""

    def body() -> None:
        m = T.int64()
        x = sized("x", (m, layout.k), layout.dtype)
        weights = layout.arguments()
        b = sized("b", (layout.n,), "float32") if bias else None
        y = sized("y", (m, layout.n), out_dtype)

        def store(row: Any, column: Any, value: Any) -> None:
            total = value if b is None else value + b[column]
            put(y, T.cast(total, out_dtype), row, column)

        with T.If(m <= FEW_ROWS):
            with T.Then(), T.If(m == 1):
                with T.Then():
                    _few_rows(m, 1, 4, x, weights, store)
                with T.Else():
                    _few_rows(m, 4, 2, x, weights, store)
            with T.Else():
                many_rows(m, x, weights, gpu, store)

    return build(name, body)


def _few_rows(m: Any, height: int, width: int, x: Any, weights: WeightTensors, store: Any) -> None:
    """A block: `height` rows of x against `width` output rows for each run of LANES threads."""
    layout = weights.layout
    threads = 128
    bundles = threads // LANES
    columns = bundles * width
    with grid(threads, -(-layout.n // columns), ceil_div(m, height)) as (tile, rows, thread):
        bundle, lane = thread // LANES, thread % LANES
        acc = local(height * width)
        sums = shared(threads)

        def row(i: int) -> Any:
            return T.min(rows * height + i, T.cast(m, "int32") - 1) if height > 1 else 0

        def column(j: int) -> Any:
            index = (tile * bundles + bundle) * width + j
            return index if layout.n % columns == 0 else T.min(index, layout.n - 1)

        for c in range(height * width):
            put(acc, f32(0), c)
        with T.serial(-(-layout.groups // LANES)) as step:
            group = step * LANES + lane
            with when(True if layout.groups % LANES == 0 else group < layout.groups), block("group"):
                _add_group(x, weights, acc, group, [row(i) for i in range(height)], [column(j) for j in range(width)])
        for i in range(height):
            for j in range(width):
                put(sums, acc[i * width + j], thread)
                reduce(sums, LANES, thread, operator.add)
                at = (tile * bundles + bundle) * width + j
                inside = lane == 0
                if layout.n % columns:
                    inside = T.And(inside, at < layout.n)
                if height > 1:
                    inside = T.And(inside, rows * height + i < m)
                with T.If(inside), T.Then():
                    store(rows * height + i, at, sums[thread])
                barrier()


def _add_group(x: Any, weights: WeightTensors, acc: Any, group: Any, rows: list[Any], columns: list[Any]) -> None:
    """acc[i, j] += x[row i, group] · w[column j, group]; the zero point is taken off the sum, not off each value."""
    layout = weights.layout
    fmt, size, width = layout.fmt, layout.group, len(columns)
    first = group * size
    part = local(len(rows) * width)
    total = local(len(rows))
    values = local(len(rows) * 4)
    for c in range(len(rows) * width):
        put(part, f32(0), c)
    for i in range(len(rows)):
        put(total, f32(0), i)
    if fmt is not None:
        words = local(width * fmt.words_per_group, "uint32")
        for j, column in enumerate(columns):
            weights.load_group(words, j * fmt.words_per_group, column, group)
    ragged = layout.k % size != 0
    for k in range(0, size, 4):
        for i, row in enumerate(rows):
            if ragged:
                for e in range(4):
                    inside = T.if_then_else(
                        first + k + e < layout.k, x[row, first + k + e], T.cast(f32(0), layout.dtype)
                    )
                    put(values, T.cast(inside, "float32"), i * 4 + e)
            else:
                put(values, T.cast(vec(x, row, first + k, lanes=4), "float32x4"), i * 4, lanes=4)
        for e in range(4):
            for i in range(len(rows)):
                put(total, total[i] + values[i * 4 + e], i)
            for j, column in enumerate(columns):
                if fmt is None:
                    at = T.min(first + k + e, layout.k - 1) if ragged else first + k + e
                    weight = T.cast(weights.buffers["w"][column, at], "float32")
                else:
                    weight = weights.stored(words, j * fmt.words_per_group, k + e)
                held = local(1)
                put(held, weight, 0)
                for i in range(len(rows)):
                    put(part, part[i * width + j] + values[i * 4 + e] * held[0], i * width + j)
    for j, column in enumerate(columns):
        for i in range(len(rows)):
            c = i * width + j
            value = part[c]
            if fmt is not None:
                value = (value - weights.zero(column, group) * total[i]) * weights.scale(column, group)
            put(acc, acc[c] + value, c)


def rows_of(name: str, layout: WeightLayout, gpu: Gpu, out_dtype: str) -> PrimFunc:
    """ids int32 [M], the layout's parameters, y `out_dtype` [M, K]: rows of the matrix, unpacked."""

    def body() -> None:
        m = T.int64()
        ids = sized("ids", (m,), "int32")
        weights = layout.arguments()
        y = sized("y", (m, layout.k), out_dtype)
        units = -(-layout.k // layout.unit)
        threads = 128
        with grid(threads, m, ceil_div(units, threads)) as (row, part, thread):
            index = part * threads + thread
            per_group = layout.group // layout.unit
            with T.If(index < units), T.Then(), block("unit"):
                values = weights.unit(ids[row], index // per_group, index % per_group)
                for e, value in enumerate(values):
                    with when(layout.k % layout.unit == 0 or index * layout.unit + e < layout.k):
                        put(y, T.cast(value, out_dtype), row, index * layout.unit + e)

    return build(name, body)
