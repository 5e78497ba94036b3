"""Attention over pages on GPUs, with rotary embedding and the append to the cache.

A layer's pages are one tensor [num_pages, kv_heads, 2, page_size, head_dim]: keys, then values. Rows that come alone
(decodes) split their keys into parts that are worked on at the same time and merged after (Flash-Decoding, Dao et al.
2023); runs of rows (prefill) walk over their keys a head at a time. The softmax is the online one (Milakov & Gimelshein
2018) in base 2. Which kernel a row goes through and where its parts begin depends on its own tile alone.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.tirx import PrimFunc

from ...platforms import Gpu
from ..base import AttentionShape
from ..tir import T, block, build, f32, i32, put, sized, when
from .elementwise import tanh
from .threads import barrier, grid, held, local, reduce, shared

PARTS = 16  # that a row's keys are split into, at most
PART_KEYS = 256  # in a part, at least
_NO_SCORE = -1e30  # finite, so that differences of it stay numbers


def query_tile(shape: AttentionShape, gpu: Gpu) -> int:
    """Consecutive rows of a sequence that a block of the prefill kernel takes: as many as its shared memory holds."""
    return 1 << (min(16, _room(shape, gpu)).bit_length() - 1)


def _keys(shape: AttentionShape, gpu: Gpu) -> int:
    """Keys that are scored between two updates of the running maximum; they lie in shared memory."""
    return 16 if 4 * 16 * shape.head_dim < gpu.shared_bytes * 3 // 4 else 8


def _room(shape: AttentionShape, gpu: Gpu) -> int:
    """Queries that a block's shared memory holds beside the keys."""
    keys = _keys(shape, gpu)
    return (gpu.shared_bytes - 4 * keys * (shape.head_dim + 2) - 4 * _threads(shape)) // (
        4 * (shape.head_dim + keys + 3)
    )


def page_tensor(shape: AttentionShape, num_pages: Any) -> tuple[Any, ...]:
    """Shape of one layer's pages."""
    return (num_pages, shape.kv_heads, 2, shape.page_size, shape.head_dim)


def rope_append(name: str, shape: AttentionShape, gpu: Gpu, dtype: str, qk_norm: float | None) -> PrimFunc:
    """Rotate queries and keys, and write keys and values to their slots: see the CPU's kernel for the arguments.

    qkv `dtype` [M, (heads + 2 kv_heads) * D] · positions, slots int32 [M] · cos, sin float32 [positions, tables * D /
    2] · (q_norm, k_norm float32 [D]) · pages, written in place · q `dtype` [M, heads * D], the output.
    Rotation pairs element i with i + D/2.
    """
    d, half, size = shape.head_dim, shape.head_dim // 2, shape.page_size
    threads = 1 << (half - 1).bit_length()

    def body() -> None:
        m, table, num_pages = T.int64(), T.int64(), T.int64()
        heads = shape.heads + 2 * shape.kv_heads
        qkv = sized("qkv", (m, heads * d), dtype)
        positions = sized("positions", (m,), "int32")
        slots = sized("slots", (m,), "int32")
        cos = sized("cos", (table, shape.tables * half), "float32")
        sin = sized("sin", (table, shape.tables * half), "float32")
        norms = [sized(n, (d,), "float32") for n in ("q_norm", "k_norm")] if qk_norm is not None else []
        pages = sized("pages", page_tensor(shape, num_pages), shape.page_dtype)
        q = sized("q", (m, shape.heads * d), dtype)

        with grid(threads, m, heads) as (row, head, thread):
            low, high, turned = local(1), local(1), local(2)
            inside = half == threads or thread < half
            with when(inside):
                put(low, T.cast(qkv[row, head * d + thread], "float32"), 0)
                put(high, T.cast(qkv[row, head * d + half + thread], "float32"), 0)
            if norms:
                squares = shared(threads)
                value = low[0] * low[0] + high[0] * high[0]
                put(squares, value if inside is True else T.if_then_else(inside, value, f32(0)), thread)
                reduce(squares, threads, thread, operator.add)
                scale = f32(1) / T.sqrt(squares[0] * f32(1 / d) + f32(qk_norm or 0.0))
                with T.If(head < shape.heads + shape.kv_heads), T.Then(), when(inside):
                    for kept, at in ((low, thread), (high, half + thread)):
                        weight = T.if_then_else(head < shape.heads, norms[0][at], norms[1][at])
                        put(kept, kept[0] * scale * weight, 0)
            page, offset = slots[row] // size, slots[row] % size
            with when(inside), T.If(head < shape.heads + shape.kv_heads):
                with T.Then(), block("rotate"):
                    if shape.table is None:
                        put(turned, low[0], 0)
                        put(turned, high[0], 1)
                    else:
                        at = (positions[row], shape.table * half + thread)
                        put(turned, low[0] * cos[at] - high[0] * sin[at], 0)
                        put(turned, high[0] * cos[at] + low[0] * sin[at], 1)
                    with T.If(head < shape.heads):
                        with T.Then():
                            for i in range(2):
                                put(q, T.cast(turned[i], dtype), row, head * d + i * half + thread)
                        with T.Else():
                            for i in range(2):
                                key = T.cast(turned[i], shape.page_dtype)
                                put(pages, key, page, head - shape.heads, 0, offset, i * half + thread)
                with T.Else():
                    for i, kept in enumerate((low, high)):
                        value = T.cast(kept[0], shape.page_dtype)
                        put(pages, value, page, head - shape.heads - shape.kv_heads, 1, offset, i * half + thread)

    return build(name, body)


@dataclass(frozen=True)
class _Arguments:
    """The tensors of `paged_attention`, inside it."""

    m: Any
    num_tiles: Any
    q: Any
    positions: Any
    tile_seq: Any
    tile_row: Any
    tile_rows: Any
    indptr: Any
    values: Any
    pages: Any


def paged_attention(name: str, shape: AttentionShape, gpu: Gpu, dtype: str, scale: float) -> PrimFunc:
    """softmax(scale · q kᵀ) v over each sequence's pages, causal, for any mix of decodes and prefill chunks.

    q `dtype` [M, heads * D] · positions int32 [M] · tile_seq, tile_row, tile_rows int32 [tiles]: which sequence a
    tile of up to `query_tile` consecutive rows belongs to, its first row, how many rows · page_indptr int32 [B + 1] and
    page_values int32 [P], the page tables · pages, holding all keys up to each row's position ·
    part_sums float32 [tiles, PARTS, heads, D] and part_peaks float32 [tiles, PARTS, heads, 2], scratch ·
    out `dtype` [M, heads * D]. Oracle: tests/kernels/gpu/test_attention.py.
    """
    d = shape.head_dim
    tile = query_tile(shape, gpu)

    def body() -> None:
        m, num_tiles, batch, num_values, num_pages = (T.int64() for _ in range(5))
        tensors = _Arguments(
            m,
            num_tiles,
            sized("q", (m, shape.heads * d), dtype),
            sized("positions", (m,), "int32"),
            sized("tile_seq", (num_tiles,), "int32"),
            sized("tile_row", (num_tiles,), "int32"),
            sized("tile_rows", (num_tiles,), "int32"),
            sized("page_indptr", (batch,), "int32"),
            sized("page_values", (num_values,), "int32"),
            sized("pages", page_tensor(shape, num_pages), shape.page_dtype),
        )
        sums = sized("part_sums", (num_tiles, PARTS, shape.heads, d), "float32")
        peaks = sized("part_peaks", (num_tiles, PARTS, shape.heads, 2), "float32")
        out = sized("out", (m, shape.heads * d), dtype)
        _single_rows(shape, gpu, scale, tensors, sums, peaks)
        _merge(shape, dtype, tensors, sums, peaks, out)
        if tile > 1:
            with T.If(num_tiles < m), T.Then():
                _row_tiles(shape, gpu, scale, dtype, tensors, out)

    return build(name, body)


def _first_key(shape: AttentionShape, position: Any) -> Any:
    """The first key that a query at `position` sees, or an earlier one at a page's border."""
    if not shape.window:
        return i32(0)
    return T.max(position - (shape.window - 1), 0) // shape.page_size * shape.page_size


def _part(shape: AttentionShape, position: Any) -> Any:
    """Keys in a part of a row at `position`: whole pages."""
    keys = position + 1 - _first_key(shape, position)
    unit = PARTS * math.lcm(16, shape.page_size)
    return T.max((keys + (unit - 1)) // unit * (unit // PARTS), i32(PART_KEYS))


def _single_rows(shape: AttentionShape, gpu: Gpu, scale: float, t: _Arguments, sums: Any, peaks: Any) -> None:
    """Tiles of one row: a block takes query heads of one key-value head and one part of the keys."""
    # Query heads of a block: all that share a key-value head, or as large a part of them as fits.
    together = max(n for n in range(1, shape.group + 1) if shape.group % n == 0 and n <= _room(shape, gpu))
    with grid(_threads(shape), t.num_tiles, shape.heads // together * PARTS) as (tile, heads_and_part, thread):
        first, part = heads_and_part // PARTS * together, heads_and_part % PARTS
        row = held(t.tile_row[tile])
        position = held(t.positions[row])
        length = held(_part(shape, position))
        start = held(_first_key(shape, position) + part * length)
        active = T.And(t.tile_rows[tile] == 1, start <= position)

        def finish(query: int, i: Any, acc: Any, peak: Any, total: Any) -> None:
            put(sums, acc, tile, part, first + query, i)
            with T.If(i == 0), T.Then():
                put(peaks, peak, tile, part, first + query, 0)
                put(peaks, total, tile, part, first + query, 1)

        _walk(
            *(shape, gpu, scale, t, tile, first // shape.group, thread, together, active),
            lambda query: (row, first + query),
            lambda query: position,
            (start, T.min(start + length, position + 1)),
            finish,
        )


def _merge(shape: AttentionShape, dtype: str, t: _Arguments, sums: Any, peaks: Any, out: Any) -> None:
    """The parts of single rows under their common maximum."""
    d = shape.head_dim
    threads = 1 << (d - 1).bit_length()
    with grid(threads, t.num_tiles, shape.heads) as (tile, head, thread):
        row = held(t.tile_row[tile])
        position = held(t.positions[row])
        count = (position - _first_key(shape, position)) // _part(shape, position) + 1
        with T.If(T.And(t.tile_rows[tile] == 1, True if d == threads else thread < d)), T.Then(), block("merge"):
            peak, total, value = local(1), local(1), local(1)
            put(peak, f32(_NO_SCORE), 0)
            put(total, f32(0), 0)
            put(value, f32(0), 0)
            with T.serial(count) as part:
                put(peak, T.max(peak[0], peaks[tile, part, head, 0]), 0)
            with T.serial(count) as part, block("add"):
                weight = local(1)
                put(weight, T.exp2(peaks[tile, part, head, 0] - peak[0]), 0)
                put(total, total[0] + peaks[tile, part, head, 1] * weight[0], 0)
                put(value, value[0] + sums[tile, part, head, thread] * weight[0], 0)
            put(out, T.cast(value[0] / total[0], dtype), row, head * d + thread)


def _row_tiles(shape: AttentionShape, gpu: Gpu, scale: float, dtype: str, t: _Arguments, out: Any) -> None:
    """Tiles of several rows: a block takes one tile and one query head."""
    d = shape.head_dim
    with grid(_threads(shape), t.num_tiles, shape.heads) as (tile, head, thread):
        rows, first = held(t.tile_rows[tile]), held(t.tile_row[tile])

        def row_of(query: Any) -> Any:
            return first + T.min(query, rows - 1)

        def finish(query: int, i: Any, acc: Any, peak: Any, total: Any) -> None:
            with T.If(query < rows), T.Then():
                put(out, T.cast(acc / total, dtype), first + query, head * d + i)

        _walk(
            *(shape, gpu, scale, t, tile, head // shape.group, thread, query_tile(shape, gpu), rows > 1),
            lambda query: (row_of(query), head),
            lambda query: t.positions[row_of(query)],
            (_first_key(shape, t.positions[first]), t.positions[first + rows - 1] + 1),
            finish,
        )


def _threads(shape: AttentionShape) -> int:
    """At least one thread for each element of a head, and a power of two."""
    return max(128, 1 << (shape.head_dim - 1).bit_length())


def _walk(
    shape: AttentionShape,
    gpu: Gpu,
    scale: float,
    t: _Arguments,
    tile: Any,
    kv_head: Any,
    thread: Any,
    queries: int,
    active: Any,
    query_at: Callable[[Any], tuple[Any, Any]],
    position_of: Callable[[Any], Any],
    span: tuple[Any, Any],
    finish: Callable[[int, Any, Any, Any, Any], None],
) -> None:
    """One block: `queries` queries over the keys in `span`, if it is `active`.

    A block that is not goes through the motions without keys: barriers must not stand under conditions.
    `query_at(i)` → its row and head; `position_of(i)`: the last key it sees. `finish(query, i, acc, peak, total)` gets
    element i of each query's weighed values, its maximum and its sum of weights.
    """
    d, size = shape.head_dim, shape.page_size
    threads, key_count = _threads(shape), _keys(shape, gpu)
    shares = threads // (1 << (d - 1).bit_length())  # of the keys, where there are more threads than elements
    start, stop = (held(end) for end in span)
    table = held(t.indptr[t.tile_seq[tile]])
    query = shared(queries * d)
    keys, stride = shared(key_count * (d + 1)), d + 1  # a step of d would have threads wait for the same bank
    slots = shared(key_count, "int32")
    score = shared(queries * key_count)
    peak, decay, total = shared(queries), shared(queries), shared(queries)
    acc = local(queries)

    def each(count: int, body: Callable[[Any], None]) -> None:
        """`body(index)` for each of `count` indices, spread over the threads."""
        with T.serial(-(-count // threads)) as step:
            index = step * threads + thread
            with when(True if count % threads == 0 else index < count):
                body(index)

    def load_query(index: Any) -> None:
        row, head = query_at(index // d)
        value = T.cast(t.q[row, head * d + index % d], "float32")
        put(query, value * f32(scale * math.log2(math.e)), index)

    def clear(index: Any) -> None:
        put(peak, f32(_NO_SCORE), index)
        put(total, f32(0), index)

    each(queries * d, load_query)
    each(queries, clear)
    for i in range(queries):
        put(acc, f32(0), i)
    element, share = thread % (threads // shares), thread // (threads // shares)

    def cached(kind: int, key: Any, i: Any) -> Any:
        """An element of one of this step's keys or values."""
        return T.cast(t.pages[slots[key] // size, kv_head, kind, slots[key] % size, i], "float32")

    steps = T.if_then_else(active, (stop - start + (key_count - 1)) // key_count, i32(0))
    with T.serial(steps) as step, block("keys"):
        base = start + step * key_count

        def find_slot(index: Any) -> None:
            # What lies past the end may be anything, even what is not a number: the last key stands in for it.
            key = T.min(base + index, stop - 1)
            put(slots, t.values[table + key // size] * size + key % size, index)

        def load_key(index: Any) -> None:
            put(keys, cached(0, index // d, index % d), index // d * stride + index % d)

        def compute_score(index: Any) -> None:
            q, key = index // key_count, index % key_count
            with block("dot"):
                dot = local(1)
                put(dot, f32(0), 0)
                with T.serial(d) as i:
                    put(dot, dot[0] + query[q * d + i] * keys[key * stride + i], 0)
                if shape.softcap:  # scores are in base 2
                    cap = shape.softcap * math.log2(math.e)
                    put(dot, tanh(dot[0] * f32(1 / cap)) * f32(cap), 0)
                seen = T.And(base + key <= position_of(q), base + key < stop)
                if shape.window:
                    seen = T.And(seen, base + key > position_of(q) - shape.window)
                put(score, T.if_then_else(seen, dot[0], f32(2 * _NO_SCORE)), index)

        barrier()
        each(key_count, find_slot)
        barrier()
        each(key_count * d, load_key)
        barrier()
        each(queries * key_count, compute_score)
        barrier()

        def update(q: Any) -> None:
            """One thread for each query; the scores become weights."""
            with block("softmax"):
                fresh, weight = local(1), local(1)
                put(fresh, peak[q], 0)
                with T.serial(key_count) as key:
                    put(fresh, T.max(fresh[0], score[q * key_count + key]), 0)
                put(decay, T.exp2(peak[q] - fresh[0]), q)
                put(peak, fresh[0], q)
                put(total, total[q] * decay[q], q)
                with T.serial(key_count) as key:
                    put(weight, T.exp2(score[q * key_count + key] - fresh[0]), 0)
                    put(score, weight[0], q * key_count + key)
                    put(total, total[q] + weight[0], q)

        each(queries, update)
        barrier()
        with when(d == threads // shares or element < d), block("values"):
            for q in range(queries):
                put(acc, acc[q] * decay[q], q)
            with T.serial(key_count // shares) as j, block("value"):
                value = local(1)
                put(value, cached(1, j * shares + share, element), 0)
                for q in range(queries):
                    put(acc, acc[q] + score[q * key_count + j * shares + share] * value[0], q)
    if shares > 1:
        folded = shared(threads)
        for q in range(queries):
            barrier()
            put(folded, acc[q], thread)
            barrier()
            with T.If(share == 0), T.Then():
                for s in range(1, shares):
                    put(acc, acc[q] + folded[s * (threads // shares) + thread], q)
    barrier()
    with T.If(T.And(active, T.And(share == 0, element < d))), T.Then():
        for q in range(queries):
            finish(q, element, acc[q], peak[q], total[q])
