"""Rotary append and paged attention against float64 on every platform: history, rows in parts, windows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from llmserve.kernels.base import AttentionShape
from llmserve.kernels.gpu.attention import PARTS, page_tensor, paged_attention, query_tile, rope_append

from ..test_attention import reference
from . import emulation
from .harness import GPUS, ROUNDING, compiled, constant, each_case, each_dtype, each_platform, target_of

SHAPES = {
    "gqa": AttentionShape(heads=8, kv_heads=2, head_dim=64, page_size=16),
    "gqa7": AttentionShape(heads=7, kv_heads=1, head_dim=80, page_size=16),
    # As many scores as threads, so that nothing stands between a thread's last key and its first score.
    "mqa8": AttentionShape(heads=8, kv_heads=1, head_dim=32, page_size=16),
    "window": AttentionShape(heads=4, kv_heads=2, head_dim=128, page_size=16, window=21),
    "wide": AttentionShape(heads=2, kv_heads=1, head_dim=256, page_size=16, softcap=0.7),
    "pages of 32": AttentionShape(heads=2, kv_heads=2, head_dim=96, page_size=32, window=40),
}
# (keys already there, new queries) per sequence: decodes, chunks on history, page borders, one row in several parts.
BATCHES = [[(0, 1)], [(15, 1), (16, 1), (0, 17)], [(40, 9), (3, 1), (0, 50), (63, 2)], [(700, 1), (6, 1), (300, 4)]]


def laid_out(batch, shape, tile, dtype, rng):
    """Queries, keys and values of a batch in the kernels' arrangement, and what attention makes of them."""
    total = [history + new for history, new in batch]
    counts = [-(-n // shape.page_size) for n in total]
    order = rng.permutation(sum(counts) + 3)
    # Stale pages hold NaN: what a row must not see, it must not even multiply by zero.
    pages = np.full(page_tensor(shape, len(order)), np.nan, dtype)
    tables, expected, queries, positions, tiles = [], [], [], [], []
    row = 0
    for index, (history, new) in enumerate(batch):
        n = history + new
        table = [int(order[sum(counts[:index]) + i]) for i in range(counts[index])]
        k, v = (rng.standard_normal((n, shape.kv_heads, shape.head_dim)).astype(dtype) for _ in "kv")
        for position in range(n):
            page, offset = table[position // shape.page_size], position % shape.page_size
            pages[page, :, 0, offset], pages[page, :, 1, offset] = k[position], v[position]
        q = rng.standard_normal((new, shape.heads, shape.head_dim)).astype(dtype)
        at = np.arange(history, n)
        expected.append(reference(*(t.astype(np.float64) for t in (q, k, v)), at, shape, 0.17))
        tables.append(table)
        queries.append(q)
        positions.append(at)
        tiles += [(index, row + t, min(tile, new - t)) for t in range(0, new, tile)]
        row += new
    indices = [
        np.concatenate(positions),
        *np.array(tiles).T,
        np.cumsum([0, *map(len, tables)]),
        np.concatenate(tables),
    ]
    inputs = [np.concatenate(queries).reshape(row, -1), *(i.astype(np.int32) for i in indices), pages]
    return [constant(i) for i in inputs], np.concatenate(expected).reshape(row, -1)


@each_case(SHAPES, ["gqa7", "wide"])
def test_attention_equals_the_reference(kind, dtype, platform):
    shape = dataclasses.replace(SHAPES[kind], page_dtype=dtype)
    tile = query_tile(shape, GPUS[platform])
    kernel = compiled(paged_attention("attention", shape, GPUS[platform], dtype, 0.17), dtype, platform)
    for batch in BATCHES:
        inputs, expected = laid_out(batch, shape, tile, dtype, np.random.default_rng(1))
        out = np.full(expected.shape, np.nan, dtype)
        parts = (len(inputs[2]), PARTS, shape.heads)
        kernel(
            *inputs,
            constant(np.empty((*parts, shape.head_dim), np.float32)),
            constant(np.empty((*parts, 2), np.float32)),
            out,
        )
        # float32 sums over at most 701 keys, rounded to the dtype.
        allowed = ROUNDING[dtype] * np.abs(expected) + 1e-5 * np.abs(expected).max()
        assert (np.abs(out - expected) <= allowed).all(), batch


@pytest.mark.parametrize("head_dim", [64, 80, 96, 112, 128, 160, 192, 256])
@pytest.mark.parametrize("platform", ["cuda", "metal"])
def test_shared_memory_suffices_for_every_head(platform, head_dim):
    shape = AttentionShape(heads=16, kv_heads=1, head_dim=head_dim, page_size=16, page_dtype="float16")
    func = paged_attention("attention", shape, GPUS[platform], "float16", 0.17)
    source = emulation.built(func, target_of(platform, "float16"))[1]
    sizes = emulation.shared_bytes(source, platform)
    # Rows alone, their parts' merging, which needs none, and tiles of rows.
    assert sorted(map(bool, sizes.values())) == [False, True, True]


@each_platform
@each_dtype
@pytest.mark.parametrize(
    ("norm", "d", "table"),
    [(None, 64, 0), (1e-6, 80, 1), (None, 80, None)],
    ids=["plain", "qk-norm", "unturned"],
)
def test_rope_append_equals_the_reference(norm, d, table, dtype, platform):
    """One of two tables that lie side by side, or none."""
    shape = AttentionShape(heads=6, kv_heads=2, head_dim=d, page_size=16, page_dtype=dtype, tables=2, table=table)
    rng = np.random.default_rng(2)
    m = 5
    qkv = rng.standard_normal((m, (shape.heads + 2 * shape.kv_heads) * d)).astype(dtype)
    positions = np.array([0, 7, 30, 31, 2], np.int32)
    slots = np.array([3, 16, 47, 0, 33], np.int32)
    angles = [np.outer(np.arange(40), theta ** (-np.arange(d // 2) / (d // 2))) for theta in (10000.0, 500.0)]
    cos, sin = (part(np.concatenate(angles, 1)).astype(np.float32) for part in (np.cos, np.sin))
    angle = np.zeros_like(angles[0]) if table is None else angles[table]
    weights = [rng.uniform(0.5, 2, d).astype(np.float32) for _ in range(2)] if norm else []
    pages = np.zeros(page_tensor(shape, 3), dtype)
    q = np.zeros((m, shape.heads * d), dtype)
    kernel = compiled(rope_append("rope", shape, GPUS[platform], dtype, norm), dtype, platform)
    kernel(*map(constant, (qkv, positions, slots, cos, sin, *weights)), pages, q)

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

    allowed = {"rtol": ROUNDING[dtype], "atol": 4e-6}
    np.testing.assert_allclose(q.reshape(m, -1, d), rotated(expected_q), **allowed)
    expected_k, v = rotated(expected_k), qkv.reshape(m, -1, d)[:, -shape.kv_heads :]
    for i, slot in enumerate(slots):
        page, offset = divmod(int(slot), shape.page_size)
        np.testing.assert_allclose(pages[page, :, 0, offset], expected_k[i], **allowed)
        np.testing.assert_array_equal(pages[page, :, 1, offset], v[i])
    untouched = np.ones((3, shape.page_size), bool)
    untouched[slots // shape.page_size, slots % shape.page_size] = False
    assert not pages.transpose(0, 3, 1, 2, 4)[untouched].any()
