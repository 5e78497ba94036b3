"""Attention over pages on CPUs, with rotary embedding and the append to the cache.

A layer's pages are one tensor [num_pages, kv_heads, 2, page_size * head_dim]. Keys lie as [head_dim, page_size]
within a page and values as [page_size, head_dim]: scores then have keys in vector lanes and need no horizontal sums.
The softmax is the online one (Milakov & Gimelshein 2018) in base 2, over runs of pages that begin at fixed positions,
in order: a row's result depends on its own keys alone, and no batching, chunking or sharing changes a bit of it.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
from tvm.tirx import PrimFunc

from ..base import AttentionShape
from ..tir import T, block, build, each_row, f32, full, prefetch, put, scratch, sized, vec, when
from .isa import Isa
from .vector_math import across, exp2, tanh

ROW_BLOCK = 4  # query rows that share one loaded (and widened) vector of the page
PAGE_RUN = 4  # pages between two updates of the softmax's running maximum, which cost as much as a page's products
LINE = 64  # bytes
_NO_SCORE = -1e30  # finite, so that differences of it stay numbers


def query_tile(shape: AttentionShape) -> int:
    """Query tokens that share one walk over the pages."""
    return max(1, ROW_BLOCK // shape.group)


def page_tensor(shape: AttentionShape, num_pages: Any) -> tuple[Any, ...]:
    """Shape of one layer's pages."""
    return (num_pages, shape.kv_heads, 2, shape.page_size * shape.head_dim)


def rope_append(name: str, shape: AttentionShape, isa: Isa, qk_norm: float | None) -> PrimFunc:
    """Rotate queries and keys, and write keys and values to their slots.

    qkv float32 [M, (heads + 2 kv_heads) * D] · positions int32 [M] · slots int32 [M] (page * page_size + offset) ·
    cos, sin float32 [positions, tables * D / 2] · (q_norm, k_norm float32 [D]: RMS norm per head before rotating,
    `qk_norm` its epsilon) · pages, written in place · q float32 [M, heads * D], the output.
    Rotation pairs element i with i + D/2 (GPT-NeoX style, as in the Hugging Face models).
    """
    d, half, size = shape.head_dim, shape.head_dim // 2, shape.page_size
    lanes = math.gcd(isa.lanes, half)

    def body() -> None:
        m, table, num_pages = T.int64(), T.int64(), T.int64()
        qkv = sized("qkv", (m, (shape.heads + 2 * shape.kv_heads) * d), "float32")
        positions = sized("positions", (m,), "int32")
        slots = sized("slots", (m,), "int32")
        cos = sized("cos", (table, shape.tables * half), "float32")
        sin = sized("sin", (table, shape.tables * half), "float32")
        norms = [sized(n, (d,), "float32") for n in ("q_norm", "k_norm")] if qk_norm is not None else []
        pages = sized("pages", page_tensor(shape, num_pages), shape.page_dtype)
        q = sized("q", (m, shape.heads * d), "float32")

        def rotate(row: Any, first: Any, norm: Any, out: Any) -> None:
            scaling = scratch(lanes + 1)
            if norm is not None:
                put(scaling, full(f32(0), lanes), 0, lanes=lanes)
                for i in range(0, d, lanes):
                    part = vec(qkv, row, first + i, lanes=lanes)
                    put(scaling, vec(scaling, 0, lanes=lanes) + part * part, 0, lanes=lanes)
                total: Any = scaling[0]
                for i in range(1, lanes):
                    total = total + scaling[i]
                put(scaling, f32(1) / T.sqrt(total * f32(1 / d) + f32(qk_norm or 0.0)), lanes)
            for i in range(0, half, lanes):
                low, high = vec(qkv, row, first + i, lanes=lanes), vec(qkv, row, first + half + i, lanes=lanes)
                if norm is not None:
                    low = low * full(scaling[lanes], lanes) * vec(norm, i, lanes=lanes)
                    high = high * full(scaling[lanes], lanes) * vec(norm, half + i, lanes=lanes)
                if shape.table is not None:
                    c = vec(cos, positions[row], shape.table * half + i, lanes=lanes)
                    s = vec(sin, positions[row], shape.table * half + i, lanes=lanes)
                    low, high = low * c - high * s, high * c + low * s
                put(out, low, i, lanes=lanes)
                put(out, high, half + i, lanes=lanes)

        def row_at(row: Any) -> None:
            turned = scratch(d)
            with T.serial(shape.heads) as head, block("query"):
                rotate(row, head * d, norms[0] if norms else None, turned)
                for i in range(0, d, lanes):
                    put(q, vec(turned, i, lanes=lanes), row, head * d + i, lanes=lanes)
            page, offset = slots[row] // size, slots[row] % size
            with T.serial(shape.kv_heads) as head, block("key"):
                rotate(row, (shape.heads + head) * d, norms[1] if norms else None, turned)
                with T.serial(d) as i:
                    put(pages, T.cast(turned[i], shape.page_dtype), page, head, 0, i * size + offset)
            with T.serial(shape.kv_heads) as head:
                first = (shape.heads + shape.kv_heads + head) * d
                for i in range(0, d, lanes):
                    value = T.cast(vec(qkv, row, first + i, lanes=lanes), f"{shape.page_dtype}x{lanes}")
                    put(pages, value, page, head, 1, offset * d + i, lanes=lanes)

        each_row(m, row_at)

    return build(name, body)


def paged_attention(name: str, shape: AttentionShape, isa: Isa, scale: float) -> PrimFunc:
    """softmax(scale · q kᵀ) v over each sequence's pages, causal, for any mix of decodes and prefill chunks.

    q float32 [M, heads * D] · positions int32 [M] · tile_seq, tile_row, tile_rows int32 [tiles]: which sequence a
    tile of up to `query_tile` consecutive rows belongs to, its first row, how many rows · page_indptr int32 [B + 1] and
    page_values int32 [P], the page tables · pages, holding all keys up to each row's position ·
    out float32 [M, heads * D]. Oracle: tests/kernels/test_attention.py.
    """
    d, size, group = shape.head_dim, shape.page_size, shape.group
    run = PAGE_RUN * size  # keys
    lanes, tile_tokens = math.gcd(isa.lanes, size), query_tile(shape)
    wide = math.gcd(2 * isa.lanes, d)  # head-dimension elements accumulated together
    step = math.gcd(isa.lanes, d)
    line_elements = LINE // np.dtype(shape.page_dtype).itemsize
    together = math.gcd(max(1, line_elements // size), d)  # head dimensions of a page's keys that fill a line

    def body() -> None:
        m, num_tiles, batch, num_values, num_pages = (T.int64() for _ in range(5))
        q = sized("q", (m, shape.heads * d), "float32")
        positions = sized("positions", (m,), "int32")
        tile_seq = sized("tile_seq", (num_tiles,), "int32")
        tile_row = sized("tile_row", (num_tiles,), "int32")
        tile_rows = sized("tile_rows", (num_tiles,), "int32")
        indptr = sized("page_indptr", (batch,), "int32")
        values = sized("page_values", (num_values,), "int32")
        pages = sized("pages", page_tensor(shape, num_pages), shape.page_dtype)
        out = sized("out", (m, shape.heads * d), "float32")

        def walk(tile: Any, head: Any, tokens: int) -> None:
            """One tile of `tokens` query tokens (the last may repeat) and one key-value head."""
            rows = tokens * group
            sub_blocks = [range(r, min(r + ROW_BLOCK, rows)) for r in range(0, rows, ROW_BLOCK)]
            with block("walk"):
                query, o = scratch(rows * d), scratch(rows * d)
                score, peak, total = scratch(rows * run), scratch(rows), scratch(rows)
                fresh, decay = scratch(1), scratch(rows)
                at, limit = scratch(tokens, "int32"), scratch(tokens, "int32")
                # Index of the first page and one past the last; numbers of a run's pages, and of the next run's.
                span, numbers = scratch(2, "int32"), scratch(2 * PAGE_RUN, "int32")
                for t in range(tokens):
                    put(at, tile_row[tile] + T.min(t, tile_rows[tile] - 1), t)
                    put(limit, positions[at[t]], t)
                put(span, limit[tokens - 1] // size + 1, 1)
                first = T.max(limit[0] - (shape.window - 1), 0) // size if shape.window else T.int32(0)
                put(span, first // PAGE_RUN * PAGE_RUN, 0)
                for r in range(rows):
                    column = (head * group + r % group) * d
                    for i in range(0, d, step):
                        scaled = vec(q, at[r // group], column + i, lanes=step) * full(
                            f32(scale * math.log2(math.e)), step
                        )
                        put(query, scaled, r * d + i, lanes=step)
                        put(o, full(f32(0), step), r * d + i, lanes=step)
                    put(peak, f32(_NO_SCORE), r)
                    put(total, f32(0), r)
                with T.serial((span[1] - span[0] + PAGE_RUN - 1) // PAGE_RUN) as p, block("run"):
                    start = span[0] + p * PAGE_RUN
                    for i in range(2 * PAGE_RUN):
                        put(numbers, values[indptr[tile_seq[tile]] + T.min(start + i, span[1] - 1)], i)
                    with T.serial(PAGE_RUN) as i, block("page"), T.If(start + i < span[1]):
                        with T.Then():
                            for rs in sub_blocks:
                                _scores(rs, numbers, i, query, score)
                        with T.Else():
                            for r in range(rows):
                                for v in range(0, size, lanes):
                                    put(score, full(f32(_NO_SCORE), lanes), r * run + i * size + v, lanes=lanes)
                    for r in range(rows):
                        _softmax(r, start * size, limit[r // group], score, peak, total, fresh, decay)
                    for rs in sub_blocks:
                        _weigh(rs, numbers, limit[tokens - 1] + 1 - start * size, score, decay, o)
                for r in range(rows):
                    with when(True if tokens == 1 else r // group < tile_rows[tile]):
                        column = (head * group + r % group) * d
                        for i in range(0, d, step):
                            value = vec(o, r * d + i, lanes=step) * full(f32(1) / total[r], step)
                            put(out, value, at[r // group], column + i, lanes=step)

        def _scores(rs: range, numbers: Any, page: Any, query: Any, score: Any) -> None:
            """The scores of the run's page `page`."""
            parts = size // lanes
            with block("scores"):
                acc = scratch(len(rs) * size)
                for c in range(len(rs) * parts):
                    put(acc, full(f32(0), lanes), c * lanes, lanes=lanes)
                with T.serial(d // together) as block_of_dims:
                    # Pages lie anywhere, so the hardware cannot guess the next one. Asked for a line at a time, as a
                    # core has room for few requests: the next run's keys, and the values that this run ends with.
                    if rs[0] == 0:
                        for line in range(0, together * size, line_elements):
                            here = block_of_dims * (together * size) + line
                            prefetch(pages, numbers[page + PAGE_RUN], current_head, 0, here)
                            prefetch(pages, numbers[page], current_head, 1, here)
                    for j in range(together):
                        i = block_of_dims * together + j
                        for v in range(parts):
                            lanes_of_keys = vec(
                                pages, numbers[page], current_head, 0, i * size + v * lanes, lanes=lanes
                            )
                            key = T.cast(lanes_of_keys, f"float32x{lanes}")
                            for c, r in enumerate(rs):
                                old = vec(acc, c * size + v * lanes, lanes=lanes)
                                put(acc, old + full(query[r * d + i], lanes) * key, c * size + v * lanes, lanes=lanes)
                for c, r in enumerate(rs):
                    for v in range(parts):
                        value = vec(acc, c * size + v * lanes, lanes=lanes)
                        put(score, value, r * run + page * size + v * lanes, lanes=lanes)

        def _softmax(
            r: int, first_key: Any, limit: Any, score: Any, peak: Any, total: Any, fresh: Any, decay: Any
        ) -> None:
            """Turn a row's scores into weights under the running maximum; earlier sums decay by the same factor."""

            def seen(v: int) -> Any:
                key = T.Broadcast(first_key + v, lanes) + T.ramp(T.int32(0), T.int32(1), lanes)
                mask = key <= full(limit, lanes)
                return T.bitwise_and(mask, key > full(limit - shape.window, lanes)) if shape.window else mask

            for v in range(0, run, lanes):
                value = vec(score, r * run + v, lanes=lanes)
                if shape.softcap:  # scores are in base 2
                    cap = shape.softcap * math.log2(math.e)
                    value = full(f32(cap), lanes) * tanh(value * full(f32(1 / cap), lanes), lanes)
                masked = T.Select(seen(v), value, full(f32(_NO_SCORE), lanes))
                put(score, masked, r * run + v, lanes=lanes)
            parts = [vec(score, r * run + v, lanes=lanes) for v in range(0, run, lanes)]
            put(fresh, T.max(peak[r], across(parts, T.max, lanes)), 0)
            put(decay, exp2(peak[r] - fresh[0], 1), r)
            put(peak, fresh[0], r)
            for v in range(0, run, lanes):
                weight = exp2(vec(score, r * run + v, lanes=lanes) - full(fresh[0], lanes), lanes)
                put(score, T.Select(seen(v), weight, full(f32(0), lanes)), r * run + v, lanes=lanes)
            put(total, total[r] * decay[r] + across(parts, operator.add, lanes), r)

        def _weigh(rs: range, numbers: Any, live: Any, score: Any, decay: Any, o: Any) -> None:
            """Add the run's values, weighed; `live` keys of the run are there."""
            with T.serial(d // wide) as chunk, block("weigh"):
                acc = scratch(len(rs) * wide)
                for c, r in enumerate(rs):
                    for i in range(0, wide, step):
                        decayed = vec(o, r * d + chunk * wide + i, lanes=step) * full(decay[r], step)
                        put(acc, decayed, c * wide + i, lanes=step)
                with T.serial(PAGE_RUN) as p, T.serial(T.max(T.min(live - p * size, size), 0)) as t:
                    for i in range(0, wide, step):
                        value = T.cast(
                            vec(pages, numbers[p], current_head, 1, t * d + chunk * wide + i, lanes=step),
                            f"float32x{step}",
                        )
                        for c, r in enumerate(rs):
                            old = vec(acc, c * wide + i, lanes=step)
                            weight = full(score[r * run + p * size + t], step)
                            put(acc, old + weight * value, c * wide + i, lanes=step)
                for c, r in enumerate(rs):
                    for i in range(0, wide, step):
                        put(o, vec(acc, c * wide + i, lanes=step), r * d + chunk * wide + i, lanes=step)

        with T.parallel(num_tiles * shape.kv_heads) as item, block("attention"):
            tile, current_head = item // shape.kv_heads, item % shape.kv_heads
            if tile_tokens == 1:
                walk(tile, current_head, 1)
            else:
                with T.If(tile_rows[tile] == 1):
                    with T.Then():
                        walk(tile, current_head, 1)
                    with T.Else():
                        walk(tile, current_head, tile_tokens)

    return build(name, body)
