"""Norms, gated activation and row selection against float64, on every platform."""

from __future__ import annotations

import numpy as np
import pytest

from llmserve.kernels.base import FUSED_ACTIVATIONS
from llmserve.kernels.gpu import elementwise

from ..test_elementwise import NORMS, gate_of, normed
from .harness import GPUS, ROUNDING, compiled, constant, each_dtype, each_platform


@each_platform
@each_dtype
@pytest.mark.parametrize(("width", "kind"), [(64, "rms"), (520, "rms"), (520, "layer"), (64, "bare")])
def test_norms_with_and_without_residual(width, kind, dtype, platform):
    rng, kind = np.random.default_rng(0), NORMS[kind]
    x = rng.standard_normal((5, width)).astype(dtype)
    residual = (100 * rng.standard_normal((5, width))).astype(np.float32)
    weight, bias = (rng.uniform(0.5, 2, width).astype(np.float32) for _ in "wb")
    params = [constant(part) for part in [weight][: kind.weight] + [bias][: kind.bias]]
    y, total = np.empty((5, width), dtype), np.empty((5, width), np.float32)
    allowed = {"rtol": ROUNDING[dtype] + 2e-6, "atol": 2e-6}

    def kernel(add):
        func = elementwise.norm("norm", width, kind, GPUS[platform], dtype, dtype, add)
        return compiled(func, dtype, platform)

    kernel(False)(constant(x), *params, y, total)
    np.testing.assert_array_equal(total, x.astype(np.float32))
    np.testing.assert_allclose(y, normed(x, kind, weight, bias), **allowed)
    kernel(True)(constant(x), constant(residual), *params, y, total)
    np.testing.assert_array_equal(total, x.astype(np.float32) + residual)
    np.testing.assert_allclose(y, normed(x.astype(np.float64) + residual, kind, weight, bias), **allowed)


@each_platform
@each_dtype
@pytest.mark.parametrize("activation", FUSED_ACTIVATIONS)
def test_gated_activation_over_the_whole_range(activation, dtype, platform):
    gate = np.concatenate([np.linspace(-200, 200, 4001), np.linspace(-5, 5, 1999)]).astype(dtype)
    up = np.random.default_rng(1).standard_normal(gate.size).astype(dtype)
    out = np.empty((1, gate.size), dtype)
    compiled(elementwise.gated("gate", gate.size, activation, dtype), dtype, platform)(
        constant(np.concatenate([gate, up])[None]), out
    )
    # A GPU's exponential is good to a few units in the last place, more for large arguments (WGSL: 3 + 2 |x| of them);
    # what is below the least normal number may be flushed to zero: the result, and before it is multiplied by the gate
    # and `up` (below 1000) the exponential. Below 1e-13 the reference by tanh says nothing.
    flushed = float(np.finfo(dtype).smallest_normal) + 1000 * float(np.finfo(np.float32).smallest_normal)
    atol = flushed if activation == "silu" else max(flushed, 1e-13)
    expected = gate_of(activation, gate.astype(np.float64)) * up
    np.testing.assert_allclose(out[0], expected, rtol=ROUNDING[dtype] + 3e-5, atol=atol)


@each_platform
@pytest.mark.parametrize("cap", [0.0, 30.0])
def test_logits_are_scaled_and_capped_in_place(cap, platform):
    logits = np.random.default_rng(5).standard_normal((3, 300)).astype(np.float32) * 100
    scaled = logits.astype(np.float64) * 0.25
    compiled(elementwise.cap_logits("cap", 300, 0.25, cap), "float32", platform)(logits)
    expected = cap * np.tanh(scaled / cap) if cap else scaled
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-4)


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
