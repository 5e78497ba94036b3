"""Norms, gated activation, embedding rows and row selection against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from llmserve.kernels.cpu import elementwise, layout
from llmserve.kernels.cpu.elementwise import made_rows
from llmserve.kernels.cpu.rows import Gate, Norm
from llmserve.quant.group import ALL_FORMATS, dequantize, pack

from .harness import RUNNABLE, compiled

both = pytest.mark.parametrize("isa", RUNNABLE, ids=lambda i: i.name)


@both
def test_rms_norm_with_and_without_residual(isa):
    rng = np.random.default_rng(0)
    for width in (64, 24):
        x, r = (rng.standard_normal((5, width)).astype(np.float32) for _ in "xr")
        weight = rng.uniform(0.5, 2, width).astype(np.float32)

        def expected(value, weight=weight):
            wide = value.astype(np.float64)
            return wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * weight

        y, total = np.empty_like(x), np.empty_like(x)
        compiled(made_rows("norm", width, isa, Norm(1e-5, False)), isa)(x, weight, y)
        np.testing.assert_allclose(y, expected(x), rtol=2e-6, atol=1e-6)
        compiled(made_rows("norm", width, isa, Norm(1e-5, True)), isa)(x, r, weight, y, total)
        np.testing.assert_array_equal(total, x + r)
        np.testing.assert_allclose(y, expected(x + r), rtol=2e-6, atol=1e-6)


@both
def test_gated_activation_over_the_whole_range(isa):
    gate = np.concatenate([np.linspace(-200, 200, 4001), np.linspace(-5, 5, 1999)]).astype(np.float32)
    up = np.random.default_rng(1).standard_normal(gate.size).astype(np.float32)
    out = np.empty((1, gate.size), np.float32)
    kernel = compiled(made_rows("silu", gate.size, isa, Gate()), isa)
    kernel(np.concatenate([gate, up])[None], out)
    wide = gate.astype(np.float64)
    with np.errstate(over="ignore"):
        expected = wide / (1 + np.exp(-wide)) * up
    # float32 rounds the exponent x · log2 e by up to |x| · 6e-8; where it is clamped the true value is below 1e-36.
    np.testing.assert_allclose(out[0], expected, rtol=1e-5, atol=1e-30)


@both
@pytest.mark.parametrize("fmt", ALL_FORMATS.values(), ids=ALL_FORMATS)
def test_quantized_rows_equal_dequantization(fmt, isa):
    """All levels, scales of either sign."""
    rng = np.random.default_rng(2)
    ids = np.array([0, 19, 7, 7, 8], np.int32)
    for n, k in ((20, 88), (24, 320)):
        u = rng.integers(0, 1 << fmt.bits, (n, fmt.padded(k)), np.uint8)
        zero = rng.integers(0, 1 << fmt.bits, (n, fmt.groups(k)), np.uint8) if fmt.zero_point else None
        parts = pack(u, fmt), rng.standard_normal((n, fmt.groups(k))).astype(np.float16)
        out = np.empty((len(ids), k), np.float32)
        kernel = compiled(elementwise.quantized_rows("rows", n, k, fmt, isa), isa)
        kernel(ids, layout.tile_quantized(*parts, fmt, isa.rows, zero), out)
        np.testing.assert_array_equal(out, dequantize(*parts, fmt, k, zero)[ids])


@both
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_float_rows(dtype, isa):
    rng = np.random.default_rng(3)
    w = rng.standard_normal((20, 24)).astype(dtype)
    ids = np.array([0, 19, 7, 7], np.int32)
    out = np.empty((4, 24), np.float32)
    compiled(elementwise.float_rows("rows", 20, 24, dtype, isa), isa)(ids, layout.tile_float(w, isa.rows), out)
    np.testing.assert_array_equal(out, w[ids].astype(np.float32))


@both
def test_taking_the_same_rows_of_two_tensors(isa):
    rng = np.random.default_rng(4)
    x, r = (rng.standard_normal((20, width)).astype(np.float32) for width in (40, 24))
    rows = np.array([0, 19, 7, 7], np.int32)
    taken = np.empty((4, 40), np.float32), np.empty((4, 24), np.float32)
    compiled(elementwise.take_rows("take", (40, 24), isa), isa)(x, r, rows, *taken)
    np.testing.assert_array_equal(taken[0], x[rows])
    np.testing.assert_array_equal(taken[1], r[rows])
