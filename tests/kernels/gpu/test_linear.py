"""Linears and embedding rows against float64, for every platform, storage and dtype."""

from __future__ import annotations

import numpy as np

from llmserve.kernels.gpu.layout import WeightLayout
from llmserve.kernels.gpu.linear import FEW_ROWS, linear, rows_of
from llmserve.kernels.gpu.matrix_units import MATRIX_UNITS
from llmserve.quant.group import ALL_FORMATS, FORMATS, dequantize, pack

from .harness import GPUS, ROUNDING, compiled, constant, each_case, each_platform

# (outputs, inputs): a partial tile and a partial group; whole ones, with more groups than lanes.
SHAPES = [(75, 88), (128, 1280)]
ROWS = [1, 2, 7, 17, 70]  # one row; few; tiles, whole and partial
STORAGES = {**ALL_FORMATS, "float": None}


def stored(rng, n, k, fmt, dtype):
    """A weight in storage, of all levels there are, and the float64 matrix that its parameters in `dtype` stand for."""
    if fmt is None:
        w = rng.standard_normal((n, k)).astype(dtype)
        return dtype, {"weight": w}, w.astype(np.float64)
    u = rng.integers(0, 1 << fmt.bits, (n, fmt.padded(k)), np.uint8)
    parts = {"q_weight": pack(u, fmt), "q_scale": rng.standard_normal((n, fmt.groups(k))).astype(np.float16)}
    if fmt.zero_point:
        parts["q_zero"] = rng.integers(0, 1 << fmt.bits, (n, fmt.groups(k)), np.uint8)
    return fmt, parts, dequantize(fmt=fmt, k=k, **parts).astype(np.float64)


def in_float16(layout, platform):
    """Whether weights are rounded to float16 before they are multiplied with many rows: matrix units take no other."""
    units = MATRIX_UNITS.get(GPUS[platform].matrix)
    return units is not None and layout.dtype == "float16" and layout.group % units.size == 0


@each_case(STORAGES, ["int4", "float"])
def test_linear_equals_the_oracle(kind, dtype, platform):
    rng = np.random.default_rng(0)
    cases = []
    for n, k in SHAPES:
        storage, parts, w = stored(rng, n, k, STORAGES[kind], dtype)
        layout = WeightLayout(n, k, storage, dtype)
        kernel = compiled(linear("linear", layout, GPUS[platform], True, dtype), dtype, platform)
        cases.append((layout, [constant(p) for p in layout.arrange(parts).values()], w, kernel))
    for layout, params, w, kernel in cases:
        n, k = layout.n, layout.k
        bias = constant(rng.standard_normal(n).astype(np.float32))
        for m in ROWS:
            x = constant(rng.standard_normal((m, k)).astype(dtype))
            y = np.full((m, n), np.nan, dtype)
            kernel(x, *params, bias, y)
            multiplied = w.astype(np.float16).astype(np.float64) if m > FEW_ROWS and in_float16(layout, platform) else w
            expected = x.astype(np.float64) @ multiplied.T + bias
            # Sums are float32, of terms whose sizes add up to `size`; the result is rounded to its dtype.
            size = np.abs(x).astype(np.float64) @ np.abs(w).T
            allowed = ROUNDING[dtype] * np.abs(expected) + 2e-6 * size.max()
            assert (np.abs(y - expected) <= allowed).all(), (n, k, m)


@each_platform
def test_logits_are_float32_without_a_bias(platform):
    rng = np.random.default_rng(1)
    storage, parts, w = stored(rng, 75, 88, FORMATS["int4"], "float16")
    layout = WeightLayout(75, 88, storage, "float16")
    kernel = compiled(linear("head", layout, GPUS[platform], False, "float32"), "float16", platform)
    x = constant(rng.standard_normal((3, 88)).astype(np.float16))
    y = np.full((3, 75), np.nan, np.float32)
    kernel(x, *map(constant, layout.arrange(parts).values()), y)
    expected = x.astype(np.float64) @ w.T
    assert np.abs(y - expected).max() <= 2e-6 * np.abs(expected).max()


@each_case(STORAGES, ["int4", "float"])
def test_rows_equal_dequantization(kind, dtype, platform):
    rng = np.random.default_rng(2)
    for n, k in ((20, 88), (24, 1280)):
        storage, parts, w = stored(rng, n, k, STORAGES[kind], dtype)
        layout = WeightLayout(n, k, storage, dtype)
        ids = constant(np.array([0, 19, 7, 7, 8], np.int32))
        out = np.full((len(ids), k), np.nan, np.float32)
        kernel = compiled(rows_of("rows", layout, GPUS[platform], "float32"), dtype, platform)
        kernel(ids, *map(constant, layout.arrange(parts).values()), out)
        # One product, exact in float64, rounded to float32.
        np.testing.assert_allclose(out, w[ids], rtol=2.0**-23, atol=0)
