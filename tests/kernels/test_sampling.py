"""The sampling kernels against the numpy choice: the same token for the same random number, whatever is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest

from llmserve.engine.run.choices import ChoiceArguments, adjusted, choose_in_numpy, kept, peak_of
from llmserve.kernels import cpu, gpu

from .gpu import harness
from .gpu.harness import constant
from .harness import RUNNABLE, compiled

Adjustment = tuple[float, float, float]
Kernel = Callable[[np.ndarray, ChoiceArguments], tuple[list[int], list[float]]]

FILTERS: list[dict[str, float]] = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 100_000},
    {"top_p": 0.0},
    {"top_p": 0.01},
    {"top_p": 0.5},
    {"top_p": 0.99},
    {"top_p": 0.999999},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"top_k": 40, "top_p": 0.9, "min_p": 0.01, "temperature": 0.8},
]


@dataclass
class Row:
    """What is asked of one row; temperature 0 is greedy."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    uniform: float = 0.5
    adjustments: Mapping[int, Adjustment] = field(default_factory=dict)
    allowed: np.ndarray | None = None


def choices(rows: Sequence[Row], vocab: int) -> ChoiceArguments:
    """The rows as arrays, with an adjustment and a mask that belong to nobody, as no array is ever empty."""
    knobs, limits, masks = [], [], [np.zeros(-(-vocab // 32) * 32, bool)]
    ids, amounts = [0], [(np.nan, np.nan, np.nan)]
    for row in rows:
        start = len(ids)
        ids += row.adjustments
        amounts += row.adjustments.values()
        mask = -1
        if row.allowed is not None:
            mask = len(masks)
            masks.append(np.pad(row.allowed, (0, -len(row.allowed) % 32), constant_values=True))
        scale = 1 / row.temperature if row.temperature else 0.0
        knobs.append((scale, row.top_p, row.min_p, row.uniform))
        limits.append((row.top_k, mask, start, len(ids)))
    return ChoiceArguments(
        np.array(knobs, np.float32),
        np.array(limits, np.int32),
        np.array(ids, np.int32),
        np.array(amounts, np.float32),
        np.packbits(masks, axis=1, bitorder="little").view(np.int32),
    )


def kernel_of(library: Callable[..., None], shapes: Callable[[int, int], Sequence[Any]], vocab: int) -> Kernel:
    def call(logits: np.ndarray, its: ChoiceArguments) -> tuple[list[int], list[float]]:
        inputs = [constant(a) for a in (logits, its.knobs, its.limits, its.ids, its.amounts, its.masks)]
        before, chosen = logits.copy(), np.full((len(logits), 2), -1, np.int32)
        # Scratch holds whatever was there before.
        scratch = [np.full(shape, -1, np.int32).view(dtype) for shape, dtype in shapes(len(logits), vocab)]
        library(*inputs, chosen, *scratch)
        np.testing.assert_array_equal(logits, before)
        return chosen[:, 0].tolist(), chosen.view(np.float32)[:, 1].tolist()

    return call


@pytest.fixture(scope="module", params=["cpu", "webgpu"])
def kernels(request: pytest.FixtureRequest) -> Callable[[int], list[Kernel]]:
    """Size of the vocabulary → the kernels for it that can be run here."""

    @cache
    def find(vocab: int) -> list[Kernel]:
        platform = request.param
        if platform != "cpu":
            func = gpu.sampling.sample("sample", vocab, harness.GPUS[platform])
            return [kernel_of(harness.compiled(func, "float32", platform), gpu.sampling.scratch_shapes, vocab)]
        funcs = [(cpu.sampling.sample("sample", vocab, isa), isa) for isa in RUNNABLE]
        return [kernel_of(compiled(*func), cpu.sampling.scratch_shapes, vocab) for func in funcs]

    return find


everywhere = pytest.mark.parametrize("kernels", ["cpu", *harness.ARCHS], indirect=True)
"""Also where GPUs are emulated, which takes ten milliseconds a row."""


def logits_of(rng: np.random.Generator, vocab: int) -> np.ndarray:
    flat = rng.standard_normal(vocab)
    peaked = rng.standard_normal(vocab) * 6
    equal = np.zeros(vocab)
    coarse = np.round(rng.standard_normal(vocab) * 2)  # many ties
    banned = np.where(rng.random(vocab) < 0.5, -np.inf, flat)
    alone = np.full(vocab, -np.inf)
    alone[vocab // 3] = 4.0
    return np.stack([flat, peaked, equal, coarse, banned, alone]).astype(np.float32)


def in_numpy(logits: np.ndarray, its: ChoiceArguments) -> tuple[list[int], list[float]]:
    chosen = choose_in_numpy(logits, its)
    return [token for token, _ in chosen], [peak_of(row) for row in chosen]


def check(kernel: Kernel, logits: np.ndarray, rows: Sequence[Row]) -> None:
    """The kernel's tokens and peaks are those of numpy, but for what the last bits of sums decide."""
    its = choices(rows, logits.shape[1])
    tokens, peaks = kernel(logits, its)
    expected, expected_peaks = in_numpy(logits, its)
    np.testing.assert_allclose(peaks, expected_peaks, rtol=1e-6)
    for i, row in enumerate(rows):
        if tokens[i] != expected[i]:
            assert row.temperature, f"row {i}: {tokens[i]} instead of {expected[i]}"
            # float32 sums of some thousand weights are within 1e-5 of the float64 ones.
            assert mismatch(adjusted(logits[i], its.limits[i], its), its.knobs[i], row, tokens[i]) <= 1e-5, (i, row)


def mismatch(logits: np.ndarray, knobs: np.ndarray, row: Row, token: int) -> float:
    """How far the row's random number lies outside the stretch that `token` has on the cumulative sum of what stays."""
    weights = np.exp((logits - logits.max()) * knobs[0])
    ids = kept(weights, row.top_k, float(knobs[1]), float(knobs[2]))
    ids = ids[weights[ids] > 0]
    if token not in ids:
        return 1.0
    ends = np.cumsum(weights[ids], dtype=np.float64)
    ends /= ends[-1]
    at = int(np.searchsorted(ids, token))
    return max((ends[at - 1] if at else 0.0) - float(knobs[3]), float(knobs[3]) - ends[at], 0.0)


@pytest.mark.parametrize("vocab", [1, 37, 512, 3001])
def test_tokens_are_those_of_numpy(vocab: int, kernels: Callable[[int], list[Kernel]]) -> None:
    rng = np.random.default_rng(0)
    for setting in FILTERS:
        logits = np.repeat(logits_of(rng, vocab), 8, 0)
        uniform = rng.random(len(logits)).astype(np.float32)
        uniform[0::8], uniform[1::8] = 0.0, np.float32(1 - 2**-24)
        for kernel in kernels(vocab):
            check(kernel, logits, [Row(**setting, uniform=float(u)) for u in uniform])  # type: ignore[arg-type]


@everywhere
def test_every_filter(kernels: Callable[[int], list[Kernel]]) -> None:
    rng = np.random.default_rng(2)
    logits = logits_of(rng, 3001)
    for kernel, setting in product(kernels(3001), FILTERS):
        check(kernel, logits, [Row(**setting, uniform=float(rng.random(dtype=np.float32))) for _ in logits])  # type: ignore[arg-type]


@pytest.mark.parametrize("vocab", [32003, 128256])
def test_large_vocabularies(vocab: int, kernels: Callable[[int], list[Kernel]]) -> None:
    rng = np.random.default_rng(1)
    logits = logits_of(rng, vocab)
    for kernel, setting in product(kernels(vocab), [{"temperature": 0.0}, {}, {"top_p": 0.95}, {"top_k": 50}]):
        check(kernel, logits, [Row(**setting, uniform=0.61803) for _ in logits])  # type: ignore[arg-type]


def test_every_random_number_of_a_small_vocabulary(kernels: Callable[[int], list[Kernel]]) -> None:
    logits = np.array([[0.5, 2.0, -1.0, 2.0, 0.5, -np.inf, 1.0]], np.float32)
    rows = [
        Row(temperature=t, top_k=k, top_p=p, min_p=m, uniform=(u + 0.5) / 16)
        for t, k, p, m, u in product((0.5, 1.0), range(8), (0.0, 0.4, 0.8, 1.0), (0.0, 0.3), range(16))
    ]
    for kernel in kernels(7):
        check(kernel, np.repeat(logits, len(rows), 0), rows)


@everywhere
@pytest.mark.parametrize("vocab", [7, 37, 3001, 32003])
def test_greedy_takes_the_first_of_the_best(vocab: int, kernels: Callable[[int], list[Kernel]]) -> None:
    rng = np.random.default_rng(2)
    rows = [rng.integers(-3, 4, vocab).astype(np.float32) for _ in range(20)]
    rows += [np.full(vocab, value, np.float32) for value in (-np.inf, np.inf, np.nan, -0.0, np.finfo(np.float32).min)]
    for at in (0, vocab // 2, vocab - 1):
        for value in (np.nan, -np.nan, np.inf, 9.0):
            rows.append(rng.integers(-3, 4, vocab).astype(np.float32))
            rows[-1][at:] = value
            rows.append(np.full(vocab, -np.inf, np.float32))
            rows[-1][at] = value
    mixed_zeros = np.full(vocab, -0.0, np.float32)
    mixed_zeros[vocab // 2] = 0.0
    logits = np.stack([*rows, mixed_zeros])
    for kernel in kernels(vocab):
        check(kernel, logits, [Row(temperature=0.0)] * len(logits))
        # A draw comes to the same where the logits are no use, and says so by the peak.
        its = choices([Row()] * len(logits), vocab)
        np.testing.assert_array_equal(kernel(logits, its)[1], in_numpy(logits, its)[1])


@everywhere
@pytest.mark.parametrize("vocab", [37, 3001, 32003])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_adjustments_and_masks(vocab: int, temperature: float, kernels: Callable[[int], list[Kernel]]) -> None:
    rng = np.random.default_rng(3)
    logits, rows = [], []
    for number in range(64):
        row = Row(temperature=temperature, uniform=float(np.float32(rng.random())), top_p=rng.choice([1.0, 0.9]))
        ids = rng.permutation(vocab)[: rng.integers(0, min(vocab, 400))]
        if number % 4:
            row.adjustments = {
                int(i): (
                    float(rng.choice([0.0, rng.uniform(-100, 100)])),
                    float(rng.choice([1.0, rng.uniform(0.5, 2)])),
                    float(rng.choice([0.0, rng.uniform(-2, 2), np.inf])),
                )
                for i in ids
            }
        if number % 3:
            row.allowed = rng.random(vocab) < rng.choice([0.5, 3 / vocab])
            row.allowed[rng.integers(vocab)] = True
        rows.append(row)
        logits.append(rng.standard_normal(vocab) * rng.choice([0.1, 3]))
    for kernel in kernels(vocab):
        check(kernel, np.array(logits, np.float32), rows)


def test_a_mask_may_leave_one_token_or_none_and_hides_what_is_not_a_number(
    kernels: Callable[[int], list[Kernel]],
) -> None:
    vocab = 37
    only = np.zeros(vocab, bool)
    only[vocab - 1] = True
    logits = np.full((4, vocab), np.nan, np.float32)
    logits[:, vocab - 1] = -5.0
    ban = {vocab - 1: (0.0, 1.0, float("inf"))}
    rows = [Row(allowed=only), Row(0.0, allowed=only), Row(0.0, allowed=only, adjustments=ban), Row(0.0)]
    for kernel in kernels(vocab):
        tokens, peaks = kernel(logits, choices(rows, vocab))
        assert tokens[:2] == [vocab - 1] * 2
        np.testing.assert_array_equal(peaks, [-5.0, -5.0, -np.inf, np.nan])
        banned = np.repeat(logits[:1], 2, 0)
        banned[:, :-1] = [[np.inf], [np.nan]]
        all_others = {i: (0.0, 1.0, float("inf")) for i in range(vocab - 1)}
        assert kernel(banned, choices([Row(adjustments=all_others)] * 2, vocab))[0] == [vocab - 1] * 2


def test_a_row_does_not_depend_on_its_company(kernels: Callable[[int], list[Kernel]]) -> None:
    vocab = 32003
    rng = np.random.default_rng(4)
    logits = rng.standard_normal((12, vocab)).astype(np.float32)
    rows = [
        Row(*setting, uniform=float(rng.random()), adjustments={int(i): (0.5, 1.3, 0.1) for i in range(0, 90, n + 1)})
        for n, setting in enumerate(product((0.0, 0.8), (0, 9), (1.0, 0.9, 0.3)))
    ]
    for kernel in kernels(vocab):
        together = kernel(logits, choices(rows, vocab))
        alone = [kernel(logits[i : i + 1], choices(rows[i : i + 1], vocab)) for i in range(len(rows))]
        assert together == ([t for (t,), _ in alone], [p for _, (p,) in alone])


def test_frequencies_follow_the_distribution(kernels: Callable[[int], list[Kernel]]) -> None:
    vocab, draws = 20, 4_000
    rng = np.random.default_rng(1)
    logits = np.tile(rng.standard_normal(vocab).astype(np.float32), (draws, 1))
    tokens, _ = kernels(vocab)[0](logits, choices([Row(uniform=u) for u in rng.random(draws) * (1 - 2**-24)], vocab))
    p = np.exp(logits[0]) / np.exp(logits[0]).sum()
    expected = p * draws
    chi2 = ((np.bincount(tokens, minlength=vocab) - expected) ** 2 / expected).sum()
    assert chi2 < 45  # the 0.999 quantile at 19 degrees of freedom is 43.8; the seed is fixed
