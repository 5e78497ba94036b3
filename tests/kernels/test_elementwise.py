"""Norms, gated activation, embedding rows and row selection against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from llmserve.kernels.base import FUSED_ACTIVATIONS, NormKind
from llmserve.kernels.cpu import elementwise, layout
from llmserve.kernels.cpu.elementwise import prologue_alone
from llmserve.kernels.cpu.prologue import GatePrologue, NormPrologue
from llmserve.quant.group import ALL_FORMATS, dequantize, pack

from .harness import RUNNABLE, compiled

both = pytest.mark.parametrize("isa", RUNNABLE, ids=lambda i: i.name)


def normed(value, kind, weight, bias):
    """The norm in float64."""
    wide = value.astype(np.float64)
    wide = wide - wide.mean(-1, keepdims=True) if kind.centred else wide
    wide = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + kind.eps)
    return wide * (weight if kind.weight else 1) + (bias if kind.bias else 0)


NORMS = {
    "rms": NormKind(1e-5),
    "layer": NormKind(1e-5, centred=True, bias=True),
    "bare": NormKind(1e-5, centred=True, weight=False),
}


@both
@pytest.mark.parametrize("kind", NORMS.values(), ids=NORMS)
def test_norms_with_and_without_residual(kind, isa):
    """x lies far from 0, where a variance by the mean of squares would lose its digits."""
    rng = np.random.default_rng(0)
    for width in (64, 24):
        x, r = (rng.standard_normal((5, width)).astype(np.float32) + 30 * kind.centred for _ in "xr")
        weight, bias = (rng.uniform(0.5, 2, width).astype(np.float32) for _ in "wb")
        params = [weight][: kind.weight] + [bias][: kind.bias]
        allowed = {"rtol": 2e-6, "atol": 2e-5 if kind.centred else 1e-6}
        y, total = np.empty_like(x), np.empty_like(x)
        compiled(prologue_alone("norm", width, isa, NormPrologue(kind, False)), isa)(x, *params, y)
        np.testing.assert_allclose(y, normed(x, kind, weight, bias), **allowed)
        compiled(prologue_alone("norm", width, isa, NormPrologue(kind, True)), isa)(x, r, *params, y, total)
        np.testing.assert_array_equal(total, x + r)
        np.testing.assert_allclose(y, normed(x + r, kind, weight, bias), **allowed)


def gate_of(activation, x):
    """The activation in float64."""
    with np.errstate(over="ignore"):
        if activation == "silu":
            return x / (1 + np.exp(-x))
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@both
@pytest.mark.parametrize("activation", FUSED_ACTIVATIONS)
def test_gated_activation_over_the_whole_range(activation, isa):
    gate = np.concatenate([np.linspace(-200, 200, 4001), np.linspace(-5, 5, 1999)]).astype(np.float32)
    up = np.random.default_rng(1).standard_normal(gate.size).astype(np.float32)
    out = np.empty((1, gate.size), np.float32)
    kernel = compiled(prologue_alone("gate", gate.size, isa, GatePrologue(activation)), isa)
    kernel(np.concatenate([gate, up])[None], out)
    # float32 rounds the exponent x · log2 e by up to |x| · 6e-8; where it is clamped the true value is below 1e-36. The
    # tanh of float64 is 1 less 1e-16, so below that the form by tanh says nothing.
    atol = 1e-30 if activation == "silu" else 1e-13
    np.testing.assert_allclose(out[0], gate_of(activation, gate.astype(np.float64)) * up, rtol=1e-5, atol=atol)


@both
@pytest.mark.parametrize("cap", [0.0, 30.0])
def test_logits_are_scaled_and_capped_in_place(cap, isa):
    for width in (1000, 37, 3):
        logits = np.random.default_rng(5).standard_normal((3, width)).astype(np.float32) * 100
        scaled = logits.astype(np.float64) * 0.25
        compiled(elementwise.cap_logits("cap", width, 0.25, cap, isa), isa)(logits)
        expected = cap * np.tanh(scaled / cap) if cap else scaled
        np.testing.assert_allclose(logits, expected, rtol=2e-6, atol=2e-5)


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
