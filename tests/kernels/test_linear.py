"""Quantized and float linears against numpy, for every storage, on the native instruction set and the portable one."""

from __future__ import annotations

import numpy as np
import pytest
import tvm

from llmserve.kernels.base import NormKind
from llmserve.kernels.cpu import layout
from llmserve.kernels.cpu.elementwise import prologue_alone
from llmserve.kernels.cpu.isa import ISAS
from llmserve.kernels.cpu.linear import float_linear, quantized_linear
from llmserve.kernels.cpu.prologue import GatePrologue, NormPrologue
from llmserve.quant.group import ALL_FORMATS, FORMATS, INT4_ZERO, dequantize, pack, quantize, unpack

from ..oracle import quantize_activations
from .harness import RUNNABLE, compiled

# (outputs, inputs): whole tiles and groups; a partial tile; a partial last group for both group sizes, also one that
# takes more lanes than divide a group of 40; more groups than share a scale.
SHAPES = [(72, 64), (20, 88), (17, 40), (8, 8), (8, 96), (24, 168)]
ROWS = [1, 2, 4, 7, 13, 70]  # one row, parts and multiples of a row block, more than one pass over the weights


def oracle(x, q_weight, q_scale, fmt, k, q_zero=None):
    """The kernel's arithmetic in float64: int8 activations per group against the stored integers."""
    a, scale = quantize_activations(x, fmt)
    u = unpack(q_weight, fmt, fmt.padded(k)).astype(np.float64).reshape(len(q_weight), -1, fmt.group_size)
    u -= fmt.max_int if q_zero is None else q_zero[:, :, None]
    return np.einsum("mgi,ngi,mg,ng->mn", a.astype(np.float64), u, scale.astype(np.float64), q_scale.astype(np.float64))


def arranged(rng, n, k, fmt, isa):
    w = rng.standard_normal((n, k)).astype(np.float32)
    q_weight, q_scale = quantize(w, fmt)
    bias = np.zeros(layout.tiles(n, isa.rows) * isa.rows, np.float32)
    bias[:n] = rng.standard_normal(n)
    return q_weight, q_scale, layout.tile_quantized(q_weight, q_scale, fmt, isa.rows), bias


@pytest.mark.parametrize("isa", RUNNABLE, ids=lambda i: i.name)
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_quantized_linear_equals_the_oracle(fmt, isa):
    rng = np.random.default_rng(0)
    for n, k in SHAPES:
        kernel = compiled(quantized_linear("linear", n, k, fmt, isa, True), isa)
        q_weight, q_scale, q, bias = arranged(rng, n, k, fmt, isa)
        for m in ROWS:
            x = rng.standard_normal((m, k)).astype(np.float32)
            y = np.full((m, n), np.nan, np.float32)
            kernel(x, q, bias, y)
            expected = oracle(x, q_weight, q_scale, fmt, k) + bias[:n]
            # Integers are exact; what is left is float32 sums over at most 6 groups.
            assert np.abs(y - expected).max() <= 1e-6 * np.abs(expected).max(), (n, k, m)


@pytest.mark.parametrize("isa", RUNNABLE, ids=lambda i: i.name)
def test_zero_points_equal_the_oracle(isa):
    """All stored values and zero points, scales of either sign; also at their bounds."""
    rng, fmt = np.random.default_rng(4), INT4_ZERO
    for n, k in SHAPES:
        kernel = compiled(quantized_linear("linear", n, k, fmt, isa, False), isa)
        for u, zero in (
            (rng.integers(0, 16, (n, fmt.padded(k))), rng.integers(0, 16, (n, fmt.groups(k)))),
            (15, 0),
            (0, 15),
        ):
            u, zero = (
                np.broadcast_to(a, b).astype(np.uint8) for a, b in ((u, (n, fmt.padded(k))), (zero, (n, fmt.groups(k))))
            )
            q_weight, q_scale = pack(u, fmt), rng.standard_normal((n, fmt.groups(k))).astype(np.float16)
            for m in ROWS:
                x = rng.standard_normal((m, k)).astype(np.float32)
                y = np.full((m, n), np.nan, np.float32)
                kernel(x, layout.tile_quantized(q_weight, q_scale, fmt, isa.rows, zero), y)
                expected = oracle(x, q_weight, q_scale, fmt, k, zero)
                # Groups cancel where all weights are far from zero, so the measure is what was added up.
                size = np.abs(x) @ np.abs(dequantize(q_weight, q_scale, fmt, k, zero)).T
                assert (np.abs(y - expected) <= 1e-6 * size.max()).all(), (n, k, m)


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_int8_activations_stay_close_to_float_ones(fmt):
    """What rounding activations costs one linear: below 1 % of the largest output, on normal inputs."""
    rng = np.random.default_rng(1)
    isa, (n, k) = RUNNABLE[0], (64, 1024)
    q_weight, q_scale, q, bias = arranged(rng, n, k, fmt, isa)
    x = rng.standard_normal((16, k)).astype(np.float32)
    y = np.empty((16, n), np.float32)
    compiled(quantized_linear("linear", n, k, fmt, isa, True), isa)(x, q, bias, y)
    expected = x.astype(np.float64) @ dequantize(q_weight, q_scale, fmt, k).T + bias[:n]
    assert np.abs(y - expected).max() <= 1e-2 * np.abs(expected).max()


@pytest.mark.parametrize("isa", RUNNABLE, ids=lambda i: i.name)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_float_linear_equals_the_oracle(dtype, isa):
    rng = np.random.default_rng(2)
    for n, k in SHAPES:
        w = rng.standard_normal((n, k)).astype(dtype)
        kernel = compiled(float_linear("linear", n, k, dtype, isa, False), isa)
        for m in ROWS:
            x = rng.standard_normal((m, k)).astype(np.float32)
            y = np.full((m, n), np.nan, np.float32)
            kernel(x, layout.tile_float(w, isa.rows), y)
            expected = x.astype(np.float64) @ w.astype(np.float64).T
            assert np.abs(y - expected).max() <= 1e-6 * np.abs(expected).max(), (n, k, m)


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_a_rows_result_does_not_depend_on_its_neighbours(fmt):
    rng = np.random.default_rng(3)
    isa, (n, k) = RUNNABLE[0], (48, 256)
    *_, q, bias = arranged(rng, n, k, fmt, isa)
    kernel = compiled(quantized_linear("linear", n, k, fmt, isa, True), isa)
    x = rng.standard_normal((70, k)).astype(np.float32)
    together, alone = np.empty((70, n), np.float32), np.empty((1, n), np.float32)
    kernel(x, q, bias, together)
    for row in (0, 3, 4, 63, 64, 69):
        kernel(x[row : row + 1].copy(), q, bias, alone)
        np.testing.assert_array_equal(alone[0], together[row])


PROLOGUES = {
    "norm": NormPrologue(NormKind(1e-5), False),
    "add-layer-norm": NormPrologue(NormKind(1e-6, centred=True, bias=True), True),
    "gate": GatePrologue("gelu_tanh"),
}


@pytest.mark.parametrize("isa", RUNNABLE, ids=lambda i: i.name)
@pytest.mark.parametrize("storage", [*ALL_FORMATS.values(), "float32"], ids=lambda s: getattr(s, "name", s))
@pytest.mark.parametrize("prologue", PROLOGUES.values(), ids=PROLOGUES)
def test_prologue_in_a_product_equals_the_kernel_of_its_own(prologue, storage, isa):
    """Bit by bit: a norm or an activation in the product's own pass over its rows, and as a kernel of its own."""
    rng, (n, k) = np.random.default_rng(6), (20, 88)  # a partial tile, a partial group
    w = rng.standard_normal((n, k)).astype(np.float32)
    if storage == "float32":
        make, weights = float_linear, (layout.tile_float(w, isa.rows),)
    else:
        q_zero = rng.integers(0, 16, (n, storage.groups(k)), np.uint8) if storage.zero_point else None
        parts = quantize(w, FORMATS["int4"] if storage.zero_point else storage)
        make, weights = quantized_linear, (layout.tile_quantized(*parts, storage, isa.rows, q_zero),)
    plain = compiled(make("linear", n, k, storage, isa, False), isa)
    fused = compiled(make("linear", n, k, storage, isa, False, prologue), isa)
    before = compiled(prologue_alone("rows", k, isa, prologue), isa)
    for m in (1, 2, 7, 70):
        gates = isinstance(prologue, GatePrologue)
        x = rng.standard_normal((m, 2 * k if gates else k)).astype(np.float32)
        params = 0 if gates else prologue.kind.weight + prologue.kind.bias
        more = [rng.uniform(0.5, 2, k).astype(np.float32) for _ in range(params)]
        adds = not gates and prologue.residual
        if adds:
            more.insert(0, rng.standard_normal((m, k)).astype(np.float32))
        made, y, expected = np.empty((m, k), np.float32), *(np.full((m, n), np.nan, np.float32) for _ in "ye")
        sums = [np.empty((m, k), np.float32)] if adds else []
        fused(x, *more, *weights, y, *sums)
        if adds:
            np.testing.assert_array_equal(sums[0], x + more[0])
        before(x, *more, made, *sums)
        plain(made, *weights, expected)
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("isa", ISAS, ids=lambda i: i.name)
@pytest.mark.parametrize("fmt", ALL_FORMATS.values(), ids=ALL_FORMATS)
def test_every_instruction_set_compiles(fmt, isa):
    """Also the ones that this machine cannot run: to assembly, which must hold the set's own instruction."""
    specs = {
        "avx512-vnni": ({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "cascadelake"}, "vpdpbusd"),
        "avx2": ({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "haswell"}, "vpmaddubsw"),
        "neon-dotprod": (
            {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": ["+neon", "+dotprod", "+fullfp16"]},
            "sdot",
        ),
        "portable": ({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64"}, "mul"),
    }
    spec, instruction = specs[isa.name]
    library = tvm.compile(
        quantized_linear("linear", 64, 320, fmt, isa, True, GatePrologue()), target=tvm.target.Target(spec)
    )
    module = getattr(library, "mod", library)
    assert instruction in module.inspect_source("s")
