"""Rotary append and paged attention against float64 numpy: chunks, history, grouped heads, windows, page borders."""

from __future__ import annotations

import numpy as np
import pytest

from llmserve.kernels.base import AttentionShape
from llmserve.kernels.cpu.attention import page_tensor, paged_attention, query_tile, rope_append

from .harness import RUNNABLE, compiled

SHAPES = {
    "gqa": AttentionShape(heads=8, kv_heads=2, head_dim=64, page_size=16),
    "mha": AttentionShape(heads=2, kv_heads=2, head_dim=32, page_size=16),
    "gqa7": AttentionShape(heads=7, kv_heads=1, head_dim=16, page_size=16),
    "gqa2-window": AttentionShape(heads=4, kv_heads=2, head_dim=128, page_size=16, window=21),
    "window-page": AttentionShape(heads=4, kv_heads=1, head_dim=16, page_size=16, window=16),
    "softcap": AttentionShape(heads=2, kv_heads=1, head_dim=256, page_size=16, softcap=0.7),
}
# (keys already there, new queries) per sequence: decodes, chunks on history, page borders.
BATCHES = [[(0, 1)], [(15, 1), (16, 1), (0, 17)], [(40, 9), (3, 1), (0, 50), (63, 2)]]


def reference(q, k, v, positions, shape, scale):
    """q [M, heads, D] at `positions` over keys and values [N, kv_heads, D], float64."""
    out = np.zeros_like(q)
    for i, position in enumerate(positions):
        first = max(0, position - shape.window + 1) if shape.window else 0
        for head in range(shape.heads):
            keys, values = k[first : position + 1, head // shape.group], v[first : position + 1, head // shape.group]
            score = keys @ q[i, head] * scale
            score = shape.softcap * np.tanh(score / shape.softcap) if shape.softcap else score
            weight = np.exp(score - score.max())
            out[i, head] = weight @ values / weight.sum()
    return out


def paged(k, v, table, pages, shape):
    """Write keys and values [N, kv_heads, D] into the pages of `table` in the kernels' layout."""
    size, d = shape.page_size, shape.head_dim
    for position in range(len(k)):
        page, offset = table[position // size], position % size
        for head in range(shape.kv_heads):
            pages[page, head, 0].reshape(d, size)[:, offset] = k[position, head]
            pages[page, head, 1].reshape(size, d)[offset] = v[position, head]


@pytest.mark.parametrize("isa", RUNNABLE, ids=lambda i: i.name)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_attention_equals_the_reference(shape, isa):
    kernel = compiled(paged_attention("attention", shape, isa, 0.17), isa)
    for batch in BATCHES:
        rng = np.random.default_rng(1)
        total = [history + new for history, new in batch]
        counts = [-(-n // shape.page_size) for n in total]
        order = rng.permutation(sum(counts) + 3)
        # Stale pages hold NaN: what a row must not see, it must not even multiply by zero.
        pages = np.full(page_tensor(shape, len(order)), np.nan, np.float16)
        tables, expected, queries, positions, tiles = [], [], [], [], []
        row = 0
        for index, (history, new) in enumerate(batch):
            n = history + new
            table = [int(order[sum(counts[:index]) + i]) for i in range(counts[index])]
            tables.append(table)
            k, v = (rng.standard_normal((n, shape.kv_heads, shape.head_dim)).astype(np.float16) for _ in "kv")
            paged(k, v, table, pages, shape)
            q = rng.standard_normal((new, shape.heads, shape.head_dim)).astype(np.float32)
            at = np.arange(history, n)
            expected.append(
                reference(q.astype(np.float64), k.astype(np.float64), v.astype(np.float64), at, shape, 0.17)
            )
            queries.append(q)
            positions.append(at)
            tiles += [(index, row + t, min(query_tile(shape), new - t)) for t in range(0, new, query_tile(shape))]
            row += new
        q = np.concatenate(queries).reshape(row, -1)
        out = np.full_like(q, np.nan)
        tile_seq, tile_row, tile_rows = np.array(tiles, np.int32).T.copy()
        indptr = np.cumsum([0, *map(len, tables)]).astype(np.int32)
        values = np.concatenate(tables).astype(np.int32)
        kernel(q, np.concatenate(positions).astype(np.int32), tile_seq, tile_row, tile_rows, indptr, values, pages, out)
        # float32 sums over at most 66 keys and a polynomial 2**x: 1e-5 of the largest leaves a factor of ten.
        expected_rows = np.concatenate(expected).reshape(row, -1)
        assert np.abs(out - expected_rows).max() <= 1e-5 * np.abs(expected_rows).max()


@pytest.mark.parametrize("isa", RUNNABLE, ids=lambda i: i.name)
@pytest.mark.parametrize(("norm", "table"), [(None, 0), (1e-6, 1), (None, None)], ids=["plain", "qk-norm", "unturned"])
def test_rope_append_equals_the_reference(norm, table, isa):
    """One of two tables that lie side by side, or none."""
    shape = AttentionShape(heads=6, kv_heads=2, head_dim=32, page_size=16, tables=2, table=table)
    rng = np.random.default_rng(2)
    m, d = 5, shape.head_dim
    qkv = rng.standard_normal((m, (shape.heads + 2 * shape.kv_heads) * d)).astype(np.float32)
    positions = np.array([0, 7, 30, 31, 2], np.int32)
    slots = np.array([3, 16, 47, 0, 33], np.int32)
    angles = [np.outer(np.arange(40), theta ** (-np.arange(d // 2) / (d // 2))) for theta in (10000.0, 500.0)]
    cos, sin = (part(np.concatenate(angles, 1)).astype(np.float32) for part in (np.cos, np.sin))
    angle = np.zeros_like(angles[0]) if table is None else angles[table]
    weights = [rng.uniform(0.5, 2, d).astype(np.float32) for _ in range(2)] if norm else []
    pages = np.zeros(page_tensor(shape, 3), np.float16)
    q = np.zeros((m, shape.heads * d), np.float32)
    compiled(rope_append("rope", shape, isa, norm), isa)(qkv, positions, slots, cos, sin, *weights, pages, q)

    x = qkv.astype(np.float64).reshape(m, -1, d)
    expected_q, expected_k = x[:, : shape.heads], x[:, shape.heads : -shape.kv_heads]
    if norm:
        expected_q, expected_k = (
            part / np.sqrt((part**2).mean(-1, keepdims=True) + norm) * w
            for part, w in zip((expected_q, expected_k), weights, strict=True)
        )

    def rotated(part):
        c, s = np.cos(angle[positions])[:, None], np.sin(angle[positions])[:, None]
        low, high = part[..., : d // 2], part[..., d // 2 :]
        return np.concatenate([low * c - high * s, high * c + low * s], -1)

    np.testing.assert_allclose(q.reshape(m, -1, d), rotated(expected_q), atol=2e-6)
    for i, slot in enumerate(slots):
        for head in range(shape.kv_heads):
            key = pages[slot // 16, head, 0].reshape(d, 16)[:, slot % 16]
            value = pages[slot // 16, head, 1].reshape(16, d)[slot % 16]
            np.testing.assert_allclose(key, rotated(expected_k)[i, head], rtol=1e-3, atol=1e-3)  # float16 pages
            np.testing.assert_array_equal(value, x[i, shape.heads + shape.kv_heads + head].astype(np.float16))
    assert np.count_nonzero(pages) <= 2 * m * shape.kv_heads * d  # nothing else was touched


def test_a_rows_result_does_not_depend_on_its_neighbours():
    """Decoding a token alone, in a chunk, or beside other sequences gives the same bits."""
    isa = RUNNABLE[0]
    shape = SHAPES["mha"]
    kernel = compiled(paged_attention("attention", shape, isa, 0.2), isa)
    rng = np.random.default_rng(3)
    pages = np.zeros(page_tensor(shape, 4), np.float16)
    k, v = (rng.standard_normal((50, shape.kv_heads, shape.head_dim)).astype(np.float16) for _ in "kv")
    paged(k, v, [2, 0, 3, 1], pages, shape)
    q = rng.standard_normal((50, shape.heads * shape.head_dim)).astype(np.float32)

    def run(rows, tiles):
        out = np.zeros((len(rows), q.shape[1]), np.float32)
        columns = np.array(tiles, np.int32).T.copy()
        tables = np.array([0, 4], np.int32), np.array([2, 0, 3, 1], np.int32)
        kernel(q[rows], np.array(rows, np.int32), *columns, *tables, pages, out)
        return out

    whole = run(list(range(50)), [(0, t, min(query_tile(shape), 50 - t)) for t in range(0, 50, query_tile(shape))])
    for row in (0, 15, 16, 17, 48, 49):
        np.testing.assert_array_equal(run([row], [(0, 0, 1)])[0], whole[row])
