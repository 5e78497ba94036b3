"""What each kernel must compute, in float64 numpy, and how far from it a correct result may be.

Every check makes its inputs, calls the kernel and returns the largest error as a fraction of what is allowed: right is
what is at most 1. Only numpy and the storage formats' own arithmetic; the same code runs wherever the kernels do.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import llmserve
from llmserve.quant.group import ALL_FORMATS, GroupFormat, dequantize, pack, quantize

from .cases import BATCHES, ROWS, STREAM_WIDTH

Case = dict[str, Any]
Call = Callable[..., None]
"""Takes numpy arrays; those that can be written hold what the kernel left in them."""

# A result is rounded once to its dtype: half a unit in the last place; the float32 sums before it lose less.
ROUNDING = {"float16": 2.0**-11, "float32": 2e-6}


def constant(array: np.ndarray) -> np.ndarray:
    """Marks an input, so that nothing is read back."""
    array = np.ascontiguousarray(array)
    array.flags.writeable = False
    return array


def storage_of(name: str) -> GroupFormat | None:
    """A group format by its name; None for "float"."""
    return {**ALL_FORMATS, "float": None}[name]


def excess(found: np.ndarray, expected: np.ndarray, allowed: Any) -> float:
    """The largest |found − expected| / allowed; infinite for what is not a number where a number is expected."""
    error = np.abs(found.astype(np.float64) - expected) / np.maximum(allowed, np.finfo(np.float64).tiny)
    return float(np.where(np.isnan(error), np.inf, error).max()) if error.size else 0.0


def stored(rng: np.random.Generator, case: Case) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A random matrix as weights are stored (what `kernels.base.Weight.arrange` takes), and what it stands for."""
    n, k = case["n"], case["k"]
    fmt = storage_of(case["storage"])
    if fmt is None:
        w = rng.standard_normal((n, k)).astype(case["dtype"])
        return {"weight": w}, w.astype(np.float64)
    if fmt.zero_point:
        values = rng.integers(0, 16, (n, fmt.padded(k))).astype(np.uint8)
        zero = rng.integers(0, 16, (n, fmt.groups(k))).astype(np.uint8)
        q, s = pack(values, fmt), rng.standard_normal((n, fmt.groups(k))).astype(np.float16)
        return {"q_weight": q, "q_scale": s, "q_zero": zero}, dequantize(q, s, fmt, k, zero).astype(np.float64)
    q, s = quantize(rng.standard_normal((n, k)).astype(np.float32), fmt)
    return {"q_weight": q, "q_scale": s}, dequantize(q, s, fmt, k).astype(np.float64)


def arranged(case: Case, parts: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The kernels' parameters, in their order; kernels/gpu/layout.py says the same, and needs a compiler to be read."""
    return [parts[name] if name == "q_weight" else parts[name].astype(case["dtype"]) for name in parts]


def weights(rng: np.random.Generator, case: Case) -> tuple[list[np.ndarray], np.ndarray]:
    """A random matrix as the kernel's parameters, and what it stands for."""
    parts, w = stored(rng, case)
    return arranged(case, parts), w


def linear(case: Case, call: Call) -> float:
    rng = np.random.default_rng(0)
    params, w = weights(rng, case)
    bias = rng.standard_normal(case["n"]).astype(np.float32) if case["bias"] else None
    worst = 0.0
    for m in ROWS:
        x = rng.standard_normal((m, case["k"])).astype(case["dtype"])
        y = np.full((m, case["n"]), np.nan, case["out"])
        call(*map(constant, (x, *params, *(() if bias is None else (bias,)))), y)
        expected = x.astype(np.float64) @ w.T + (0 if bias is None else bias)
        # Sums are float32, of terms whose sizes add up to `size`; the result is rounded to its dtype.
        size = np.abs(x).astype(np.float64) @ np.abs(w).T
        worst = max(worst, excess(y, expected, ROUNDING[case["out"]] * np.abs(expected) + 2e-6 * size.max()))
    return worst


def rows_of(case: Case, call: Call) -> float:
    params, w = weights(np.random.default_rng(2), case)
    ids = np.array([0, case["n"] - 1, 7, 7, 8], np.int32)
    out = np.full((len(ids), case["k"]), np.nan, np.float32)
    call(*map(constant, (ids, *params)), out)
    # One product, exact in float64, rounded to float32.
    return excess(out, w[ids], 2.0**-23 * np.abs(w[ids]) + np.finfo(np.float32).smallest_subnormal)


def norm(case: Case, call: Call) -> float:
    rng = np.random.default_rng(0)
    width, dtype = case["width"], case["dtype"]
    x = rng.standard_normal((5, width)).astype(case["x_dtype"])
    residual = (100 * rng.standard_normal((5, width))).astype(np.float32)
    weight = rng.uniform(0.5, 2, width).astype(np.float32)
    y, total = np.full((5, width), np.nan, dtype), np.full((5, width), np.nan, np.float32)
    bias = rng.uniform(0.5, 2, width).astype(np.float32)
    params = (weight, bias) if case["centred"] else (weight,)
    call(*map(constant, (x, residual, *params) if case["add"] else (x, *params)), y, total)
    exact = x.astype(np.float64) + (residual if case["add"] else 0)
    moved = exact - exact.mean(-1, keepdims=True) if case["centred"] else exact
    expected = moved / np.sqrt((moved**2).mean(-1, keepdims=True) + 1e-5) * weight + (bias if case["centred"] else 0)
    summed = x.astype(np.float32) + residual if case["add"] else x.astype(np.float32)
    # The sum is one addition in float32, or none: exact.
    return max(
        excess(y, expected, (ROUNDING[dtype] + 1e-6) * np.abs(expected) + 1e-6),
        0.0 if np.array_equal(total, summed) else np.inf,
    )


def gated(case: Case, call: Call) -> float:
    dtype, width = case["dtype"], case["width"]
    wide = np.linspace(-200, 200, width * 2 // 3)
    gate = np.concatenate([wide, np.linspace(-5, 5, width - len(wide))]).astype(dtype)
    up = np.random.default_rng(1).standard_normal(width).astype(dtype)
    out = np.full((1, width), np.nan, dtype)
    call(constant(np.concatenate([gate, up])[None]), out)
    exact = gate.astype(np.float64)
    # Of either activation, the logistic function that the gate is multiplied with.
    inner = exact if case["activation"] == "silu" else 2 * np.sqrt(2 / np.pi) * (exact + 0.044715 * exact**3)
    with np.errstate(over="ignore"):
        expected = exact / (1 + np.exp(-inner)) * up
    # A GPU's exponential is good to a few units in the last place, more for large arguments; what is below the least
    # normal number may be flushed to zero, also before it is multiplied by the gate and `up` (below 1000).
    flushed = float(np.finfo(dtype).smallest_normal) + 1000 * float(np.finfo(np.float32).smallest_normal)
    return excess(out[0], expected, (ROUNDING[dtype] + 3e-5) * np.abs(expected) + flushed)


def cap_logits(case: Case, call: Call) -> float:
    logits = np.random.default_rng(5).standard_normal((3, case["width"])).astype(np.float32) * 100
    expected = 30 * np.tanh(logits.astype(np.float64) * 0.25 / 30)
    call(logits)
    # The same exponential as above, of values up to 8.
    return excess(logits, expected, 3e-5 * np.abs(expected) + 1e-4)


def take_rows(case: Case, call: Call) -> float:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((9, case["x_width"])).astype(case["dtype"])
    residual = rng.standard_normal((9, case["width"])).astype(np.float32)
    rows = np.array([8, 0, 0, 3], np.int32)
    taken = [np.full((4, *array.shape[1:]), np.nan, array.dtype) for array in (x, residual)]
    call(*map(constant, (x, residual, rows)), *taken)
    # Copies: exact.
    return 0.0 if all(map(np.array_equal, taken, (x[rows], residual[rows]))) else np.inf


# Rows of the sampling check: inverse temperature, top_p, min_p; top_k; whether there is a mask, and adjustments.
_ASKED = (
    (0.0, 1.0, 0.0, 0, False, False),
    (0.0, 1.0, 0.0, 0, True, True),
    (1.0, 1.0, 0.0, 0, False, False),
    (3.0, 1.0, 0.0, 0, True, True),
    (1.0, 1.0, 0.0, 7, False, False),
    (1.0, 0.5, 0.0, 0, False, True),
    (1.0, 1.0, 0.2, 0, True, False),
    (1.25, 0.9, 0.01, 40, True, True),
)
SAMPLED = len(_ASKED)


def sample(case: Case, call: Call) -> float:
    """The same tokens as `llmserve.engine.run.choices` chooses, or one whose stretch of the cumulative sum is within
    1e-5 of the random number: float32 sums of some thousand weights are that near to float64's."""
    choices, vocab = _choices(), case["width"]
    rng = np.random.default_rng(4)
    knobs, limits, ids, amounts = [], [], [0], [(np.nan, np.nan, np.nan)]  # the first of each is nobody's
    masks = [np.zeros(-(-vocab // 32) * 32, bool)]
    for scale, top_p, min_p, top_k, masked, adjusted in _ASKED:
        start = len(ids)
        if adjusted:
            ids += rng.permutation(vocab)[:20].tolist()
            amounts += [(float(rng.standard_normal()), 1.3, [0.0, 0.5, np.inf][i % 3]) for i in range(20)]
        if masked:
            masks.append(np.pad(rng.random(vocab) < 0.5, (0, -vocab % 32)))
        knobs.append((scale, top_p, min_p, rng.random()))
        limits.append((top_k, len(masks) - 1 if masked else -1, start, len(ids)))
    packed = np.packbits(masks, axis=1, bitorder="little").view(np.int32)
    its = choices.ChoiceArguments(
        *(np.array(knobs, np.float32), np.array(limits, np.int32)),
        *(np.array(ids, np.int32), np.array(amounts, np.float32), packed),
    )
    worst = 0.0
    for spread in (1.0, 6.0):
        logits = (spread * rng.standard_normal((SAMPLED, vocab))).astype(np.float32)
        chosen = np.full((SAMPLED, 2), -1, np.int32)
        scratch = [np.full(shape, -1, np.int32).view(dtype) for shape, dtype in case["scratch"]]
        call(*map(constant, (logits, its.knobs, its.limits, its.ids, its.amounts, its.masks)), chosen, *scratch)
        right = np.array(choices.choose_in_numpy(logits, its), np.int32)
        peaks = right.view(np.float32)[:, 1].astype(np.float64)
        worst = max(worst, excess(chosen.view(np.float32)[:, 1], peaks, 1e-6 * np.abs(peaks)))
        for row, (token, expected) in enumerate(zip(chosen[:, 0].tolist(), right[:, 0].tolist(), strict=True)):
            if token != expected:
                values = choices.adjusted(logits[row], its.limits[row], its)
                worst = max(worst, _outside(choices, values, its.knobs[row], int(its.limits[row, 0]), token) / 1e-5)
    return worst


def _outside(choices: Any, logits: np.ndarray, knobs: np.ndarray, top_k: int, token: int) -> float:
    """How far a row's random number lies outside of a token's stretch of the cumulative sum of what stays."""
    if knobs[0] == 0:
        return np.inf
    weights = np.exp((logits - logits.max()) * knobs[0])
    ids = choices.kept(weights, top_k, float(knobs[1]), float(knobs[2]))
    if token not in ids:
        return np.inf
    ends = np.cumsum(weights[ids], dtype=np.float64)
    ends /= ends[-1]
    at = int(np.searchsorted(ids, token))
    return float(max((ends[at - 1] if at else 0.0) - knobs[3], knobs[3] - ends[at], 0.0))


def _choices() -> Any:
    """`llmserve.engine.run.choices`, without the engine's package, which wants what a bare machine has not."""
    name = "llmserve_choices"
    if name not in sys.modules:
        path = Path(llmserve.__file__).parent / "engine" / "run" / "choices.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def rope_append(case: Case, call: Call) -> float:
    shape, dtype, m = case["shape"], case["dtype"], 5
    heads, kv, d, size = (shape[name] for name in ("heads", "kv_heads", "head_dim", "page_size"))
    rng = np.random.default_rng(2)
    qkv = rng.standard_normal((m, (heads + 2 * kv) * d)).astype(dtype)
    positions, slots = np.array([0, 7, 30, 31, 2], np.int32), np.array([3, 16, 47, 0, 33], np.int32)
    angle = np.outer(np.arange(40), 10000.0 ** (-np.arange(d // 2) / (d // 2)))
    norms = [rng.uniform(0.5, 2, d).astype(np.float32) for _ in range(2)] if case["norm"] else []
    pages, q = np.zeros((3, kv, 2, size, d), dtype), np.full((m, heads * d), np.nan, dtype)
    tables = (np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32))
    call(*map(constant, (qkv, positions, slots, *tables, *norms)), pages, q)

    x = qkv.astype(np.float64).reshape(m, -1, d)
    parts = [x[:, :heads], x[:, heads : heads + kv]]
    if norms:
        parts = [p / np.sqrt((p**2).mean(-1, keepdims=True) + 1e-6) * w for p, w in zip(parts, norms, strict=True)]
    c, s = np.cos(angle[positions])[:, None], np.sin(angle[positions])[:, None]
    turned = []
    for p in parts:
        low, high = p[..., : d // 2], p[..., d // 2 :]
        turned.append(np.concatenate([low * c - high * s, high * c + low * s], -1))
    expected = np.zeros(pages.shape)
    for i, slot in enumerate(slots):
        expected[slot // size, :, 0, slot % size] = turned[1][i]
        expected[slot // size, :, 1, slot % size] = x[i, heads + kv :]
    return max(
        excess(found, right, ROUNDING[dtype] * np.abs(right) + 4e-6)
        for found, right in ((q.reshape(turned[0].shape), turned[0]), (pages, expected))
    )


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, at: np.ndarray, window: int, scale: float) -> np.ndarray:
    """softmax(scale · q kᵀ) v, causal: q [n, heads, D] at positions `at`, k and v [keys, kv_heads, D]."""
    repeats = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, repeats, 1), np.repeat(v, repeats, 1)
    score = np.einsum("qhd,khd->hqk", q, k) * scale
    age = at[:, None] - np.arange(len(k))[None]
    score = np.where((age >= 0) & (age < (window or len(k) + 1)), score, -np.inf)
    weight = np.exp(score - score.max(-1, keepdims=True))
    return np.einsum("hqk,khd->qhd", weight / weight.sum(-1, keepdims=True), v)


def paged_attention(case: Case, call: Call) -> float:
    """`case["tile"]` and `case["parts"]` are the kernel's own numbers, from who compiled it."""
    return max(_attention_batch(case, call, batch) for batch in BATCHES)


def _attention_batch(case: Case, call: Call, batch: tuple[tuple[int, int], ...]) -> float:
    shape, dtype, tile = case["shape"], case["dtype"], case["tile"]
    heads, kv, d, size = (shape[name] for name in ("heads", "kv_heads", "head_dim", "page_size"))
    rng = np.random.default_rng(1)
    counts = [-(-(history + new) // size) for history, new in batch]
    order = rng.permutation(sum(counts) + 3).tolist()
    # Stale pages hold NaN: what a row must not see, it must not even multiply by zero.
    pages = np.full((len(order), kv, 2, size, d), np.nan, dtype)
    tables, expected, queries, positions, tiles, row = [], [], [], [], [], 0
    for index, (history, new) in enumerate(batch):
        n = history + new
        table = [order.pop() for _ in range(counts[index])]
        q, k, v = (rng.standard_normal((count, h, d)).astype(dtype) for count, h in ((new, heads), (n, kv), (n, kv)))
        for position in range(n):
            page, offset = table[position // size], position % size
            pages[page, :, 0, offset], pages[page, :, 1, offset] = k[position], v[position]
        at = np.arange(history, n)
        exact = (t.astype(np.float64) for t in (q, k, v))
        expected.append(attend(*exact, at, shape.get("window", 0), 0.17))
        tables.append(table)
        queries.append(q)
        positions.append(at)
        tiles += [(index, row + t, min(tile, new - t)) for t in range(0, new, tile)]
        row += new
    right = np.concatenate(expected).reshape(row, -1)
    indices = (np.concatenate(positions), *np.array(tiles).T, np.cumsum([0, *map(len, tables)]), np.concatenate(tables))
    scratch = (len(tiles), case["parts"], heads)
    out = np.full(right.shape, np.nan, dtype)
    inputs = (
        np.concatenate(queries).reshape(row, -1),
        *(i.astype(np.int32) for i in indices),
        pages,
        np.empty((*scratch, d), np.float32),
        np.empty((*scratch, 2), np.float32),
    )
    call(*map(constant, inputs), out)
    # float32 sums over at most 701 keys, rounded to the dtype.
    return excess(out, right, ROUNDING[dtype] * np.abs(right) + 1e-5 * np.abs(right).max())


def stream_copy(case: Case, call: Call) -> float:
    x = np.random.default_rng(3).standard_normal((3, STREAM_WIDTH)).astype(np.float32)
    y = np.full_like(x, np.nan)
    call(constant(x), y)
    return 0.0 if np.array_equal(x, y) else np.inf


def stream_read(case: Case, call: Call) -> float:
    x = np.random.default_rng(3).standard_normal((3, STREAM_WIDTH)).astype(np.float32)
    sums = np.full((3, 1), np.nan, np.float32)
    call(constant(x), sums)
    # A float32 sum of STREAM_WIDTH terms, in whatever order.
    size = np.abs(x.astype(np.float64)).sum(-1, keepdims=True)
    return excess(sums, x.astype(np.float64).sum(-1, keepdims=True), 1e-6 * size)


CHECKS: dict[str, Callable[[Case, Call], float]] = {
    check.__name__: check
    for check in (
        *(linear, rows_of, norm, gated, cap_logits, take_rows, sample, rope_append, paged_attention),
        *(stream_copy, stream_read),
    )
}
