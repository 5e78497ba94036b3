"""Norms, gated activation and row selection against float64, on every platform."""

from __future__ import annotations

import numpy as np
import pytest

from llmserve.kernels.gpu import elementwise

from .harness import GPUS, ROUNDING, compiled, constant, each_dtype, each_platform


@each_platform
@each_dtype
@pytest.mark.parametrize("width", [64, 520])
def test_rms_norm_with_and_without_residual(width, dtype, platform):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, width)).astype(dtype)
    residual = (100 * rng.standard_normal((5, width))).astype(np.float32)
    weight = constant(rng.uniform(0.5, 2, width).astype(np.float32))

    def expected(value):
        return value / np.sqrt((value**2).mean(-1, keepdims=True) + 1e-5) * weight

    y, total = np.empty((5, width), dtype), np.empty((5, width), np.float32)
    allowed = {"rtol": ROUNDING[dtype] + 1e-6, "atol": 1e-6}
    compiled(elementwise.rms_norm("norm", width, 1e-5, GPUS[platform], dtype, dtype, False), dtype, platform)(
        constant(x), weight, y, total
    )
    np.testing.assert_array_equal(total, x.astype(np.float32))
    np.testing.assert_allclose(y, expected(x.astype(np.float64)), **allowed)

    kernel = compiled(elementwise.rms_norm("norm", width, 1e-5, GPUS[platform], dtype, dtype, True), dtype, platform)
    kernel(constant(x), constant(residual), weight, y, total)
    np.testing.assert_array_equal(total, x.astype(np.float32) + residual)
    np.testing.assert_allclose(y, expected(x.astype(np.float64) + residual), **allowed)


@each_platform
@each_dtype
def test_gated_activation_over_the_whole_range(dtype, platform):
    gate = np.concatenate([np.linspace(-200, 200, 4001), np.linspace(-5, 5, 1999)]).astype(dtype)
    up = np.random.default_rng(1).standard_normal(gate.size).astype(dtype)
    out = np.empty((1, gate.size), dtype)
    compiled(elementwise.gated_silu("silu", gate.size, dtype), dtype, platform)(
        constant(np.concatenate([gate, up])[None]), out
    )
    wide = gate.astype(np.float64)
    with np.errstate(over="ignore"):
        expected = wide / (1 + np.exp(-wide)) * up
    # A GPU's exponential is good to a few units in the last place, more for large arguments (WGSL: 3 + 2 |x| of them);
    # what is below the least normal number may be flushed to zero: the result, and before it is multiplied by the gate
    # and `up` (below 1000) the exponential.
    flushed = float(np.finfo(dtype).smallest_normal) + 1000 * float(np.finfo(np.float32).smallest_normal)
    np.testing.assert_allclose(out[0], expected, rtol=ROUNDING[dtype] + 3e-5, atol=flushed)


@each_platform
@pytest.mark.parametrize("widths", [(130, 130), (300, 130), (64, 130)])
def test_taking_the_same_rows_of_two_tensors(widths, platform):
    rng = np.random.default_rng(2)
    x, r = (rng.standard_normal((9, width)).astype(np.float32) for width in widths)
    rows = np.array([8, 0, 0, 3], np.int32)
    taken = [np.empty((4, width), np.float32) for width in widths]
    kernel = compiled(elementwise.take_rows("take", widths, "float32"), "float32", platform)
    kernel(*map(constant, (x, r, rows)), *taken)
    np.testing.assert_array_equal(taken[0], x[rows])
    np.testing.assert_array_equal(taken[1], r[rows])
