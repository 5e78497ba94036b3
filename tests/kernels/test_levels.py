"""Integer products of each instruction set, exactly: every level of every format against activations at their bounds.

All scales are 1 here, so a kernel returns its integer sums, and they have to be numpy's to the last bit. Every row that
the machine can execute is run; NEON's elsewhere too, with its one instruction put together from plain ones.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llmserve.kernels.cpu import isa as rows
from llmserve.kernels.cpu import layout
from llmserve.kernels.cpu.isa import ISAS, Isa, by_name
from llmserve.kernels.cpu.linear import quantized_linear
from llmserve.kernels.cpu.rounding import shared_groups
from llmserve.kernels.tir import T, put, scratch, vec
from llmserve.quant.group import ALL_FORMATS, GroupFormat, pack

from ..oracle import quantize_activations
from .harness import EXECUTABLE, compiled

NEON = by_name("neon-dotprod")
ZEROS = (*range(16), 255)  # all that 4-bit grids count from, and the largest that is stored
each_format = pytest.mark.parametrize("fmt", ALL_FORMATS.values(), ids=ALL_FORMATS)


def activations(fmt: GroupFormat, k: int) -> np.ndarray:
    """float32 [M, k], whole numbers with ±127 in each group: each pattern of -127, 0 and 127 over the four inputs of a
    step, in all steps; sums of pairs, of steps and of groups reach their bounds in them. Then noise of mixed signs."""
    patterns = [p for p in itertools.product((-127, 0, 127), repeat=4) if any(p)]
    noise = np.random.default_rng(0).integers(-127, 128, (16, k))
    noise[:, :: fmt.group_size] = 127
    return np.concatenate([np.tile(patterns, k // 4), noise]).astype(np.float32)


def levels(fmt: GroupFormat, k: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Stored values uint8 [N, k] and zero points uint8 [N, 2]: each level everywhere in a row; the outermost ones and
    those around zero in each pattern over the four inputs of a step; noise. All of it with each zero point."""
    rng, top = np.random.default_rng(1), (1 << fmt.bits) - 1
    steps = [[level] * 4 for level in range(top + 1)]
    steps += itertools.product((0, fmt.max_int, fmt.max_int + 1, top), repeat=4)
    u = np.concatenate([np.tile(steps, k // 4), rng.integers(0, top + 1, (16, k))]).astype(np.uint8)
    if not fmt.zero_point:
        return u, None
    zero = np.repeat(np.array(ZEROS, np.uint8), len(u))
    return np.tile(u, (len(ZEROS), 1)), np.stack([zero, zero[::-1]], axis=1)


def assert_exact(isa: Isa, fmt: GroupFormat) -> None:
    k = 2 * fmt.group_size
    x, (u, zero) = activations(fmt, k), levels(fmt, k)
    a, scale = quantize_activations(x, fmt)
    assert (scale == 1).all() and (a.reshape(x.shape) == x).all() and shared_groups(fmt) in (1, 4)
    n = len(u)
    offset = np.full((n, 2), fmt.max_int) if zero is None else zero
    weights = u.astype(np.int64) - np.repeat(offset.astype(np.int64), fmt.group_size, axis=1)
    expected = x.astype(np.int64) @ weights.T
    assert np.abs(expected).max() < 1 << 24, "float32 would round it"
    q = layout.tile_quantized(pack(u, fmt), np.ones((n, 2), np.float16), fmt, isa.rows, zero)
    kernel = compiled(quantized_linear("linear", n, k, fmt, isa, False), isa)
    y = np.full((len(x), n), np.nan, np.float32)
    kernel(x, q, y)
    np.testing.assert_array_equal(y, expected)
    x[0], expected[0] = 0, 0  # nothing to scale by
    for i in range(0, len(x), 5):  # a single row is another loop
        kernel(x[i : i + 1].copy(), q, y[:1])
        np.testing.assert_array_equal(y[0], expected[i])


@pytest.mark.parametrize("isa", EXECUTABLE, ids=lambda isa: isa.name)
@each_format
def test_every_level_is_multiplied_exactly(fmt: GroupFormat, isa: Isa) -> None:
    assert_exact(isa, fmt)


def sdot(name: str, dtype: str, acc: Any, weights: Any, activations: Any) -> Any:
    """What NEON's instruction computes: four products of int8 added to each int32."""
    assert (name, dtype) == ("llvm.aarch64.neon.sdot.v4i32.v16i8", "int32x4")
    products = scratch(16, "int32")
    put(products, T.cast(weights, "int32x16") * T.cast(activations, "int32x16"), 0, lanes=16)
    for i in range(4):
        acc = acc + vec(products, i, lanes=4, stride=4)
    return acc


@pytest.mark.skipif(NEON in EXECUTABLE, reason="NEON runs here as it is")
@each_format
def test_neon_multiplies_every_level_exactly_on_other_machines(
    fmt: GroupFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of its arithmetic but for the instruction itself, compiled for this machine."""

    monkeypatch.setattr(rows, "_intrinsic", sdot)
    assert_exact(replace(NEON, name=ISAS[-1].name, features=()), fmt)
