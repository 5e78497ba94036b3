"""Scale search is never worse than rounding to nearest by the error it goes by, and uses what the format has."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.errors import CheckpointError
from llmserve.quant import group, scale_search
from llmserve.quant.group import INT3, INT3_X40, INT4, INT8, GroupFormat, dequantize, unpack

FORMATS = [INT3, INT3_X40, INT4, INT8]


def group_errors(
    w: np.ndarray, q_weight: np.ndarray, q_scale: np.ndarray, fmt: GroupFormat, h: np.ndarray
) -> np.ndarray:
    n, k = w.shape
    squares = h * (dequantize(q_weight, q_scale, fmt, k).astype(np.float64) - w) ** 2
    return np.pad(squares, ((0, 0), (0, fmt.padded(k) - k))).reshape(n, -1, fmt.group_size).sum(axis=2)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32), st.sampled_from(FORMATS), st.integers(1, 130), st.sampled_from([0.0, 1e-30, 1e-6, 1.0, 1e3])
)
def test_no_group_is_worse_than_rounded_to_nearest(seed: int, fmt: GroupFormat, k: int, size: float) -> None:
    """By the float32 sums that are compared, to their error of some 1e-6."""
    rng = np.random.default_rng(seed)
    w = (rng.standard_t(3, (5, k)) * size).astype(np.float32)
    h = rng.exponential(size=k).astype(np.float32)
    searched = group_errors(w, *scale_search.quantize(w, fmt, h), fmt, h)
    nearest = group_errors(w, *group.quantize(w, fmt), fmt, h)
    assert (searched <= nearest * (1 + 1e-4) + 1e-37).all()


@pytest.mark.parametrize("fmt", [INT3, INT4], ids=lambda fmt: fmt.name)
def test_the_level_beyond_the_others_serves_either_side(fmt: GroupFormat) -> None:
    """Weights on the grid of max_int + 1 levels of one side are stored without error, whichever side it is."""
    top = (1 << fmt.bits) - 1
    for sign in (1, -1):
        w = (sign * np.float32(0.25) * (np.arange(32) % (top + 1) - fmt.max_int)).astype(np.float32)[None]
        q_weight, q_scale = scale_search.quantize(w, fmt)
        np.testing.assert_array_equal(dequantize(q_weight, q_scale, fmt, 32), w)
        assert q_scale[0, 0] == sign * np.float16(0.25)
        assert set(unpack(q_weight, fmt, 32)[0]) == set(range(top + 1))


@pytest.mark.parametrize(("fmt", "gain"), [(INT3, 0.85), (INT4, 0.95)], ids=lambda value: getattr(value, "name", ""))
def test_normal_weights_gain(fmt: GroupFormat, gain: float) -> None:
    w = np.random.default_rng(0).standard_normal((200, 128)).astype(np.float32)
    ones = np.ones(128)
    searched = group_errors(w, *scale_search.quantize(w, fmt), fmt, ones).sum()
    assert searched < gain * group_errors(w, *group.quantize(w, fmt), fmt, ones).sum()


@pytest.mark.parametrize(("value", "cause"), [(np.inf, "NaN or infinity"), (1e9, "too large for a float16 scale")])
def test_weights_that_no_scale_holds_are_refused(value: float, cause: str) -> None:
    w = np.ones((4, 64), np.float32)
    w[2, 33] = value
    with pytest.raises(CheckpointError, match=cause):
        scale_search.quantize(w, INT4)
