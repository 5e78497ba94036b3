"""Matrix products of many rows on GPUs: tiles of both operands in shared memory, weights unpacked on the way there.

A block computes a tile of outputs, one group of inputs at a time, by matrix units where the GPU has them; else each
thread computes a small square of the tile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...platforms import Gpu
from ..tir import T, block, f32, put, when
from .layout import WeightTensors
from .matrix_units import MATRIX_UNITS, MatrixUnits
from .threads import barrier, ceil_div, grid, local, shared

TILE_N = 64  # output rows (of W) of a block
TILE_M = 64  # rows of x of a block, at most

Store = Callable[[Any, Any, Any], None]
"""(row, column, sum) → writes an output."""


def many_rows(m: Any, x: Any, weights: WeightTensors, gpu: Gpu, store: Store) -> None:
    """x [M, K] against the weights, by the best means that this GPU has for the dtype."""
    layout = weights.layout
    units = MATRIX_UNITS.get(gpu.matrix) if layout.dtype == "float16" else None
    if units is not None and layout.group % units.size == 0:
        _by_matrix_units(m, x, weights, units, store)
    else:
        _by_threads(m, x, weights, gpu, store)


def _stage(
    m: Any,
    x: Any,
    weights: WeightTensors,
    origin: tuple[Any, Any],
    tile_m: int,
    group: Any,
    thread: Any,
    threads: int,
    left: Callable[[Any, Any, Any], None],
    right: Callable[[Any, Any, Any], None],
) -> None:
    """One group of inputs of both tiles, from `origin` on: `left(i, k, value)` and `right(j, k, value)` keep them."""
    layout = weights.layout
    depth, units = layout.group, layout.group // layout.unit
    first_row, first_column = origin
    with T.serial(ceil_div(tile_m * depth, threads)) as step:
        index = step * threads + thread
        i, k = index // depth, index % depth
        inside = first_row + i < m
        if layout.k % depth:
            inside = T.And(inside, group * depth + k < layout.k)
        with when(tile_m * depth % threads == 0 or index < tile_m * depth):
            left(i, k, T.if_then_else(inside, x[first_row + i, group * depth + k], T.cast(f32(0), layout.dtype)))
    with T.serial(ceil_div(TILE_N * units, threads)) as step, block("unit"):
        index = step * threads + thread
        j, unit = index // units, index % units
        with when(TILE_N * units % threads == 0 or index < TILE_N * units), block("unpack"):
            column = first_column + j
            column = column if layout.n % TILE_N == 0 else T.min(column, layout.n - 1)
            for e, value in enumerate(weights.unit(column, group, unit)):
                right(j, unit * layout.unit + e, value)


def _by_threads(m: Any, x: Any, weights: WeightTensors, gpu: Gpu, store: Store) -> None:
    layout = weights.layout
    depth = layout.group
    tile_m = TILE_M if 4 * depth * (TILE_M + TILE_N) <= gpu.shared_bytes else TILE_M // 2
    threads, across = 256, 16
    down = threads // across
    high, wide = tile_m // down, TILE_N // across  # outputs of one thread
    with grid(threads, ceil_div(m, tile_m), -(-layout.n // TILE_N)) as (rows, columns, thread):
        acc = local(high * wide)
        left, right = shared((depth, tile_m)), shared((depth, TILE_N))
        for c in range(high * wide):
            put(acc, f32(0), c)
        with T.serial(layout.groups) as group, block("group"):
            barrier()
            _stage(
                *(m, x, weights, (rows * tile_m, columns * TILE_N), tile_m, group, thread, threads),
                lambda i, k, value: put(left, T.cast(value, "float32"), k, i),
                lambda j, k, value: put(right, value, k, j),
            )
            barrier()
            with T.serial(depth) as k, block("products"):
                a, w = local(high), local(wide)
                for i in range(high):
                    put(a, left[k, thread // across * high + i], i)
                for j in range(wide):
                    put(w, right[k, thread % across * wide + j], j)
                for i in range(high):
                    for j in range(wide):
                        put(acc, acc[i * wide + j] + a[i] * w[j], i * wide + j)
        for i in range(high):
            for j in range(wide):
                row = rows * tile_m + thread // across * high + i
                column = columns * TILE_N + thread % across * wide + j
                with T.If(_inside(row, m, column, layout.n)), T.Then():
                    store(row, column, acc[i * wide + j])


def _by_matrix_units(m: Any, x: Any, weights: WeightTensors, units: MatrixUnits, store: Store) -> None:
    """Four warps, each with a quarter of the tile: 32 by 32 outputs."""
    layout = weights.layout
    depth, size = layout.group, units.size
    stride = depth + 8  # rows that do not all begin in the same bank, and begin on 16 bytes
    warps, quarter = 4, 32
    threads, count = warps * 32, quarter // size
    with grid(threads, ceil_div(m, TILE_M), -(-layout.n // TILE_N)) as (rows, columns, thread):
        left, right = shared(TILE_M * stride, "float16"), shared(TILE_N * stride, "float16")
        sums = shared(TILE_M * TILE_N)
        warp = thread // 32
        top, side = warp // 2 * quarter, warp % 2 * quarter
        a, b, c = units.left(count), units.right(count), units.sums(count * count)
        for i in range(count * count):
            c.clear(i)
        with T.serial(layout.groups) as group, block("group"):
            barrier()
            _stage(
                *(m, x, weights, (rows * TILE_M, columns * TILE_N), TILE_M, group, thread, threads),
                lambda i, k, value: put(left, value, i * stride + k),
                lambda j, k, value: put(right, T.cast(value, "float16"), j * stride + k),
            )
            barrier()
            for k in range(0, depth, size):
                for i in range(count):
                    a.load(i, left, (top + i * size) * stride + k, stride)
                for j in range(count):
                    b.load(j, right, (side + j * size) * stride + k, stride, transposed=True)
                for i in range(count):
                    for j in range(count):
                        units.multiply_add(c, i * count + j, a, i, b, j)
        for i in range(count):
            for j in range(count):
                c.store(i * count + j, sums, (top + i * size) * TILE_N + side + j * size, TILE_N)
        barrier()
        with T.serial(TILE_M * TILE_N // threads) as step:
            index = step * threads + thread
            row, column = rows * TILE_M + index // TILE_N, columns * TILE_N + index % TILE_N
            with T.If(_inside(row, m, column, layout.n)), T.Then():
                store(row, column, sums[index])


def _inside(row: Any, m: Any, column: Any, n: int) -> Any:
    return T.And(row < m, column < n) if n % TILE_N else row < m
