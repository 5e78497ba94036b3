"""Matrix products y = x Wᵀ (+ b) on CPUs: 3-, 4- and 8-bit weights against int8 activations, float weights in float32.

One PrimFunc serves any number of rows: one row streams the weights once, several share each unpacked tile. Every output
element is computed by the same operations in the same order whatever the batch, so batching never changes a result.
Oracle: `llmserve.quant.group.dequantize` with activations rounded to int8 (`quantize_activations` of tests/oracle.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from tvm.tirx import PrimFunc

from ...quant.group import GroupFormat
from ..tir import T, block, build, f32, full, i32, put, scratch, sized, vec, when
from . import layout
from .blocks import Blocks
from .isa import Isa
from .prologue import Prologue, input_rows
from .rounding import RoundedActivations, shared_groups

FLOAT_ROWS = 4  # rows of x that share a tile of float weights
SMALL_BYTES = 128 << 10  # of weights that one core reads from its cache before another has been woken
CACHE_BYTES = 512 << 10  # of x that a pass over the weights keeps in the second-level cache
LANES = 8  # inputs come in multiples of this


def _store_tile(y: Any, acc: Any, offset: int, m: Any, tile: Any, n: int, isa: Isa, bias: Any) -> None:
    """Write one row's tile, with the bias; the last tile may reach past N."""
    rows = isa.rows
    value = vec(acc, offset, lanes=rows)
    if bias is not None:
        value = value + vec(bias, tile * rows, lanes=rows)
    if n % rows == 0:
        put(y, value, m, tile * rows, lanes=rows)
        return
    with T.If(tile < n // rows):
        with T.Then():
            put(y, value, m, tile * rows, lanes=rows)
        with T.Else():
            for r in range(n % rows):
                scalar = acc[offset + r] if bias is None else acc[offset + r] + bias[tile * rows + r]
                put(y, scalar, m, tile * rows + r)


def _over_rows(
    m: Any,
    count: int,
    nbytes: int,
    row_bytes: int,
    streams: int,
    height: int,
    begin: Callable[[int], Callable[..., None]],
) -> None:
    """The loop nest shared by all formats: one row by `streams` tiles, or `height` rows by one tile. The weights have
    `count` tiles and `nbytes` bytes, a row of x as tiles read it `row_bytes`.

    `begin(height)` readies the rows of x for blocks of so many. It returns `tile_at(first_row, rows, first_tile, tiles,
    limit)`, which computes rows x tiles.
    """
    streams = streams if count % streams == 0 else 1
    with T.If(m == 1):
        with T.Then(), block("one"):
            tile_at = begin(1)
            with (T.serial if nbytes <= SMALL_BYTES else T.parallel)(count // streams) as t:
                tile_at(T.int64(0), 1, t * streams, streams, None)
        with T.Else(), block("several"):
            tile_at = begin(height)
            heights = range(least := max(1, height // 4), height + 1, least)
            # Neighbouring tiles go together: their outputs share cache lines, and a row of y may be a page away.
            together = 2 if count % 2 == 0 else 1
            rows = max(1, CACHE_BYTES // row_bytes // height) * height
            with T.serial((m + rows - 1) // rows) as outer, T.parallel(count // together) as t:
                blocks = (T.min(rows, m - outer * rows) + height - 1) // height
                with T.serial(blocks) as inner, T.serial(together) as w:
                    first, tile = outer * rows + inner * height, t * together + w
                    _fitting(m - first, heights, lambda n: tile_at(first, n, tile, 1, m))


def _fitting(left: Any, heights: Sequence[int], emit: Callable[[int], None]) -> None:
    """`emit(n)` for the smallest n of the ascending `heights` that holds the rows that are left, or the last one."""
    if len(heights) == 1:
        emit(heights[0])
        return
    half = len(heights) // 2
    with T.If(left > heights[half - 1]):
        with T.Then():
            _fitting(left, heights[half:], emit)
        with T.Else():
            _fitting(left, heights[:half], emit)


def _clamped(row: Any, height: int, limit: Any) -> list[Any]:
    """The rows of a block; those past the end repeat the last one, as stray scratch memory may be denormal and slow."""
    return [row if i == 0 else row + i if limit is None else T.min(row + i, limit - 1) for i in range(height)]


def quantized_linear(
    name: str, n: int, k: int, fmt: GroupFormat, isa: Isa, bias: bool, prologue: Prologue = None
) -> PrimFunc:
    """The inputs of `prologue` for x [M, K], q as layout.tile_quantized makes it, (b float32 [tiles * rows],)
    y float32 [M, N], the outputs of `prologue`.

    K must be a multiple of 8. The activation rounding is W·A8 in the manner of llama.cpp's dot products (Q8_0, Q8_K): a
    group adds (sum of int8 products) * weight scale, groups that share an activation scale their sum times that.
    """
    if k % LANES:
        raise ValueError(f"a quantized linear needs a multiple of {LANES} inputs, got {k}")
    groups, shared, steps, rows = fmt.groups(k), shared_groups(fmt), layout.steps(fmt), isa.rows
    count, in_dot = layout.tiles(n, rows), isa.centre(fmt)
    # What weights count from, as far as the dot product has not subtracted it, times the sum of activations is taken
    # off; where each group has a zero point of its own, the sum is kept as it is.
    offset = 1 if fmt.zero_point else fmt.max_int - in_dot

    def body() -> None:
        m = T.int64()
        x = input_rows(prologue, m, k, isa)
        weight = Blocks(n, k, fmt, isa)
        b = sized("b", (count * rows,), "float32") if bias else None
        y = sized("y", (m, n), "float32")
        x.declare_outputs()

        def begin(height: int) -> Callable[..., None]:
            rounded = RoundedActivations(m, k, fmt, height, offset)

            def prepare(row: Any) -> None:
                with block("prepare"):
                    x.begin(row)
                    rounded.round(row, lambda first, lanes: x.part(row, first, lanes))

            if height == 1:
                prepare(T.int64(0))
            else:
                with T.serial(rounded.padded - m) as i:
                    rounded.blank(m + i)
                with T.parallel(m) as row:
                    prepare(row)
            return partial(tile_at, rounded)

        def add_group(rounded: RoundedActivations, row: Any, height: int, tile: Any, g: Any, scaled: Any) -> None:
            """Add one group's products, times the weights' scales, to `scaled`."""
            lanes = isa.acc_lanes(fmt)
            # A constant offset's share is where an accumulator of 32 bits can start.
            begins = not fmt.zero_point and isa.acc_dtype(fmt) == "int32"
            with block("group"):
                part = scratch(height * lanes, isa.acc_dtype(fmt))
                for i in range(height):
                    start = full(rounded.sum(row, i, g), rows) if begins else isa.zero(fmt)
                    put(part, start, i * lanes, lanes=lanes)
                for j in range(steps):
                    weights = weight.step(tile, g, j, 4 * rows, pairs=isa.pair_shifts and height > 1)
                    for i in range(height):
                        old = vec(part, i * lanes, lanes=lanes)
                        put(part, isa.dot(fmt, old, weights, rounded.four(row, i, g, j)), i * lanes, lanes=lanes)
                if isa.prefetch and height > 2:
                    weight.prefetch(tile, g + isa.prefetch)
                for i in range(height):
                    total = isa.total(fmt, vec(part, i * lanes, lanes=lanes))
                    if not begins:
                        term = full(rounded.sum(row, i, g), rows)
                        if fmt.zero_point:
                            zero = T.cast(weight.zeros(tile, g), f"int32x{rows}")
                            term = term * (zero - full(i32(in_dot), rows))
                        total = total + term
                    value = T.cast(total, f"float32x{rows}") * weight.scales(tile, g)
                    put(scaled, vec(scaled, i * rows, lanes=rows) + value, i * rows, lanes=rows)

        def tile_at(rounded: RoundedActivations, row: Any, height: int, tile: Any, _: int, limit: Any) -> None:
            with block("tile"):
                acc, scaled = scratch(height * rows), scratch(height * rows)
                for sums in (acc, scaled):
                    for i in range(height):
                        put(sums, full(f32(0), rows), i * rows, lanes=rows)
                with T.serial(groups) as g:
                    add_group(rounded, row, height, tile, g, scaled)
                    # One loop over groups: inside of another it would be unrolled, which memory was seen to like less.
                    with when(True if shared == 1 else T.Or(g % shared == shared - 1, g == groups - 1)):
                        for i in range(height):
                            value = vec(scaled, i * rows, lanes=rows) * full(rounded.scale(row, i, g // shared), rows)
                            put(acc, vec(acc, i * rows, lanes=rows) + value, i * rows, lanes=rows)
                            put(scaled, full(f32(0), rows), i * rows, lanes=rows)
                for i in range(height):
                    with when(True if limit is None else row + i < limit):
                        _store_tile(y, acc, i * rows, row + i, tile, n, isa, b)

        with block("linear"):
            _over_rows(m, count, fmt.nbytes(n, k), k, 1, isa.rows_per_block, begin)

    return build(name, body)


def float_linear(name: str, n: int, k: int, dtype: str, isa: Isa, bias: bool, prologue: Prologue = None) -> PrimFunc:
    """The inputs of `prologue` for x [M, K], w `dtype` (float32 or float16) as layout.tile_float makes it, (b,)
    y float32 [M, N], the outputs of `prologue`.

    Accumulates in float32, in the order of K.
    """
    rows = isa.rows
    count = layout.tiles(n, rows)

    def body() -> None:
        m = T.int64()
        given = input_rows(prologue, m, k, isa)
        w = sized("w", (count, k, rows), dtype)
        b = sized("b", (count * rows,), "float32") if bias else None
        y = sized("y", (m, n), "float32")
        given.declare_outputs()

        def make(x: Any, row: Any) -> None:
            lanes = math.gcd(isa.lanes, k)
            with block("make"):
                given.begin(row)
                with T.serial(k // lanes) as i:
                    put(x, given.part(row, i * lanes, lanes), row, i * lanes, lanes=lanes)

        def tile_at(x: Any, row: Any, height: int, tile: Any, width: int, limit: Any) -> None:
            cells = [(i, t) for i in range(height) for t in range(width)]
            with block("tile"):
                acc = scratch(len(cells) * rows)
                at = _clamped(row, height, limit)
                for c in range(len(cells)):
                    put(acc, full(f32(0), rows), c * rows, lanes=rows)
                with T.serial(k) as j:
                    for c, (i, t) in enumerate(cells):
                        weight = T.cast(vec(w, tile + t, j, 0, lanes=rows), f"float32x{rows}")
                        put(
                            acc, vec(acc, c * rows, lanes=rows) + full(x[at[i], j], rows) * weight, c * rows, lanes=rows
                        )
                for c, (i, t) in enumerate(cells):
                    with when(True if limit is None else row + i < limit):
                        _store_tile(y, acc, c * rows, row + i, tile + t, n, isa, b)

        def begin(height: int) -> Callable[..., None]:
            x = given.tensor if prologue is None else scratch((m, k))
            if prologue is not None and height == 1:
                make(x, T.int64(0))
            elif prologue is not None:
                with T.parallel(m) as row:
                    make(x, row)
            return partial(tile_at, x)

        with block("linear"):
            _over_rows(m, count, n * k * np.dtype(dtype).itemsize, 4 * k, 4, FLOAT_ROWS, begin)

    return build(name, body)
