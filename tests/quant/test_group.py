"""The group formats against their definition, written out one element at a time."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.errors import CheckpointError
from llmserve.quant.group import (
    FORMATS,
    INT3,
    INT3_X40,
    INT4,
    INT4_ZERO,
    INT8,
    GroupFormat,
    dequantize,
    pack,
    quantize,
    unpack,
)

formats = pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)


def by_the_book(w: np.ndarray, fmt: GroupFormat) -> tuple[np.ndarray, np.ndarray]:
    """Quantizes with plain loops and Python integers."""
    n, k = w.shape
    words = np.zeros((n, fmt.words(k)), np.uint32)
    scales = np.zeros((n, fmt.groups(k)), np.float16)
    padded = np.zeros((n, fmt.padded(k)), np.float32)
    padded[:, :k] = w
    for row in range(n):
        for g in range(fmt.groups(k)):
            group = padded[row, g * fmt.group_size : (g + 1) * fmt.group_size]
            scale = np.float16(np.abs(group).max() / np.float32(fmt.max_int))
            scales[row, g] = scale
            for j, value in enumerate(group):
                q = int(np.rint(value / np.float32(scale))) if scale else 0
                u = min(max(q + fmt.max_int, 0), 2 * fmt.max_int)
                put(words[row, g * fmt.words_per_group : (g + 1) * fmt.words_per_group], j, u, fmt)
    return words, scales


def put(words: np.ndarray, j: int, u: int, fmt: GroupFormat) -> None:
    """Sets value j of a group, bit by bit."""
    for bit in range(fmt.bits):
        at = j // fmt.per_word * 32 + j % fmt.per_word * fmt.bits + bit if fmt.spaced else j * fmt.bits + bit
        words[at // 32] |= np.uint32((u >> bit & 1) << at % 32)


@formats
@pytest.mark.parametrize("k", [1, 32, 40, 41, 97])
def test_agrees_with_the_definition(fmt: GroupFormat, k: int) -> None:
    w = np.random.default_rng(k).standard_normal((3, k)).astype(np.float32)
    q_weight, q_scale = quantize(w, fmt)
    expected_weight, expected_scale = by_the_book(w, fmt)
    np.testing.assert_array_equal(q_weight, expected_weight)
    np.testing.assert_array_equal(q_scale, expected_scale)
    assert q_weight.dtype == np.uint32 and q_scale.dtype == np.float16
    assert q_weight.nbytes + q_scale.nbytes == fmt.nbytes(3, k)


def test_the_layouts_are_the_documented_ones() -> None:
    assert (INT4.per_word, INT4.words_per_group, INT4.max_int) == (8, 4, 7)
    assert (INT3_X40.per_word, INT3_X40.words_per_group, INT3_X40.max_int) == (10, 4, 3)
    assert (INT3.words_per_group, INT3.max_int) == (3, 3)
    assert (INT8.per_word, INT8.words_per_group, INT8.max_int) == (4, 8, 127)
    # 0 sits at max_int, the group's extremes at 0 and 2·max_int; lowest bits first.
    w = np.zeros((1, 32), np.float32)
    w[0, :3] = [7, -7, 1]
    assert quantize(w, INT4)[0][0, 0] == 0x7777780E
    assert INT3.nbytes(1, 32) == 14 and INT4.nbytes(1, 32) == 18 and INT4_ZERO.nbytes(1, 32) == 19
    for spaced, size in ((True, 32), (False, 40)):
        with pytest.raises(ValueError, match="whole number"):
            GroupFormat("odd", bits=3, group_size=size, spaced=spaced)


def test_zero_points_are_each_groups_own() -> None:
    rng = np.random.default_rng(0)
    u, zero = rng.integers(0, 16, (3, 64), np.uint8), rng.integers(0, 16, (3, 2), np.uint8)
    scale = rng.standard_normal((3, 2)).astype(np.float16)  # of either sign
    at = [(r, i, i // 32) for r in range(3) for i in range(64)]
    expected = np.reshape([(int(u[r, i]) - int(zero[r, g])) * float(scale[r, g]) for r, i, g in at], (3, 64))
    np.testing.assert_array_equal(dequantize(pack(u, INT4_ZERO), scale, INT4_ZERO, 64, zero), np.float32(expected))
    with pytest.raises(ValueError, match="not a format to round to"):
        quantize(np.ones((1, 32), np.float32), INT4_ZERO)


@formats
@given(data=st.data())
def test_pack_and_unpack_are_inverse(fmt: GroupFormat, data: st.DataObject) -> None:
    n, groups = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    seed = data.draw(st.integers(0, 2**32 - 1))
    u = np.random.default_rng(seed).integers(0, 2**fmt.bits, (n, groups * fmt.group_size), dtype=np.uint8)
    words = pack(u, fmt)
    assert words.shape == (n, groups * fmt.words_per_group)
    np.testing.assert_array_equal(unpack(words, fmt, u.shape[1]), u)


@formats
@given(data=st.data())
def test_error_is_at_most_half_a_step(fmt: GroupFormat, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, 130))
    magnitude = 10.0 ** data.draw(st.integers(-12, 4))
    dtype = data.draw(st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    w = (rng.uniform(-1, 1, (2, k)) * magnitude).astype(dtype)
    q_weight, q_scale = quantize(w, fmt)
    back = dequantize(q_weight, q_scale, fmt, k)
    step = np.repeat(q_scale.astype(np.float64), fmt.group_size, axis=1)[:, :k]
    error = np.abs(back.astype(np.float64) - w.astype(np.float64))
    # A hair for float32 rounding in the division and the product; the rest for scales that float16 holds coarsely.
    assert (error <= step * (0.5 + 1e-4) + fmt.max_int * 2.0**-25).all()


@formats
@given(seed=st.integers(0, 2**32 - 1))
def test_a_dequantized_matrix_quantizes_to_itself(fmt: GroupFormat, seed: int) -> None:
    w = np.random.default_rng(seed).standard_normal((2, fmt.group_size * 2)).astype(np.float32)
    q_weight, q_scale = quantize(w, fmt)
    again_weight, again_scale = quantize(dequantize(q_weight, q_scale, fmt, w.shape[1]), fmt)
    np.testing.assert_array_equal(again_weight, q_weight)
    np.testing.assert_array_equal(again_scale, q_scale)


@formats
def test_padding_takes_no_part(fmt: GroupFormat) -> None:
    k = fmt.group_size + 1
    w = np.full((1, k), -3.0, np.float32)
    q_weight, q_scale = quantize(w, fmt)
    values = unpack(q_weight, fmt, fmt.padded(k))
    assert (values[:, :k] == 0).all() and (values[:, k:] == fmt.max_int).all()
    assert dequantize(q_weight, q_scale, fmt, k).shape == (1, k)


@formats
@pytest.mark.parametrize("value", [0.0, 1e-30, -1e-12])
def test_a_group_of_next_to_nothing_is_zero_without_nan(fmt: GroupFormat, value: float) -> None:
    w = np.full((2, fmt.group_size), value, np.float32)
    q_weight, q_scale = quantize(w, fmt)
    assert (q_scale == 0).all()
    np.testing.assert_array_equal(dequantize(q_weight, q_scale, fmt, fmt.group_size), np.zeros_like(w))


@formats
def test_the_largest_scale_is_kept_and_the_next_refused(fmt: GroupFormat) -> None:
    w = np.zeros((1, 40), np.float32)
    w[0, 3] = 65504.0 * fmt.max_int
    assert dequantize(*quantize(w, fmt), fmt, 40)[0, 3] == w[0, 3]
    w[0, 3] *= 1.01
    with pytest.raises(CheckpointError, match="too large for a float16 scale"):
        quantize(w, fmt)


@formats
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_nan_and_infinity_are_refused(fmt: GroupFormat, value: float, dtype: Any) -> None:
    w: np.ndarray = np.ones((700, 64), dtype)
    w[699, 63] = value
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        quantize(w, fmt)


@formats
def test_blocks_do_not_show(fmt: GroupFormat) -> None:
    w = np.random.default_rng(0).standard_normal((37, 50_000)).astype(ml_dtypes.bfloat16)
    q_weight, q_scale = quantize(w, fmt)
    for row in (0, 4, 5, 36):
        one_weight, one_scale = quantize(w[row : row + 1], fmt)
        np.testing.assert_array_equal(one_weight[0], q_weight[row])
        np.testing.assert_array_equal(one_scale[0], q_scale[row])
