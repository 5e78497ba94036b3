"""GPTQ against its textbook form, which inverts the Hessian and goes column by column in float64, and against what it
is for: less error of the output than rounding to nearest."""

from __future__ import annotations

import numpy as np
import pytest

from llmserve.errors import CheckpointError
from llmserve.quant import gptq, group, scale_search
from llmserve.quant.group import INT3, INT3_X40, INT4, INT8, GroupFormat, dequantize, unpack

formats = pytest.mark.parametrize("fmt", [INT3, INT3_X40, INT4, INT8], ids=lambda fmt: fmt.name)


def problem(n: int, k: int, seed: int = 0, samples: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Weights [n, k] and the second moments of inputs that depend on each other, as activations do."""
    rng = np.random.default_rng(seed)
    mixing = np.eye(k) + rng.standard_normal((k, k)) * 0.3
    inputs = (rng.standard_normal((samples, k)) @ mixing).astype(np.float32)
    return rng.standard_normal((n, k)).astype(np.float32), inputs.T @ inputs


def output_error(w: np.ndarray, rounded: np.ndarray, hessian: np.ndarray) -> float:
    e = rounded.astype(np.float64) - w
    return float(np.einsum("ij,jk,ik", e, hessian.astype(np.float64), e))


def by_the_book(
    w: np.ndarray, hessian: np.ndarray, scales: np.ndarray, fmt: GroupFormat, order: np.ndarray
) -> np.ndarray:
    """Frantar et al. 2022, algorithm 1 with blocks of one column and scales [N, groups] given: levels [N, K]."""
    w, k = w.astype(np.float64).copy(), w.shape[1]
    inverse = np.linalg.inv(hessian[np.ix_(order, order)].astype(np.float64))
    upper = np.linalg.cholesky(inverse).T
    levels = np.zeros(w.shape, np.int64)
    w = w[:, order]
    for place in range(k):
        scale = scales[:, order[place] // fmt.group_size].astype(np.float64)
        level = np.clip(np.rint(w[:, place] / scale), -fmt.max_int, (1 << fmt.bits) - 1 - fmt.max_int)
        levels[:, order[place]] = level
        error = (w[:, place] - level * scale) / upper[place, place]
        w[:, place:] -= error[:, None] * upper[place, place:][None, :]
    return levels


@formats
@pytest.mark.parametrize("k", [40, 96, 130])
def test_agrees_with_the_textbook(fmt: GroupFormat, k: int) -> None:
    """With the scales that the search chose, the textbook's levels are the same: but for values within float32's error
    of the middle between two levels, which may move what follows, so of 24 rows at most one may differ."""
    w, hessian = problem(24, k)
    factored = gptq.factor(hessian, fmt.group_size, damping=0.01)
    q_weight, q_scale, left = gptq.quantize(w, fmt, factored)
    damped = hessian.astype(np.float64) + 0.01 * np.diagonal(hessian).mean() * np.eye(k)
    expected = by_the_book(w, damped, q_scale, fmt, factored.order)
    levels = unpack(q_weight, fmt, k).astype(np.int64) - fmt.max_int
    assert (levels != expected).any(axis=1).sum() <= 1
    # And Σ D e² is the error of the output, as the LDLQ form has it; to float32's error in sums of k · k terms.
    assert left == pytest.approx(output_error(w, dequantize(q_weight, q_scale, fmt, k), damped), rel=1e-3)


@formats
def test_less_error_than_rounding_to_nearest_and_than_scales_alone(fmt: GroupFormat) -> None:
    w, hessian = problem(64, 160)

    def error(q_weight: np.ndarray, q_scale: np.ndarray) -> float:
        return output_error(w, dequantize(q_weight, q_scale, fmt, 160), hessian)

    nearest = error(*group.quantize(w, fmt))
    searched = error(*scale_search.quantize(w, fmt, np.diagonal(hessian).copy()))
    best = error(*gptq.quantize(w, fmt, gptq.factor(hessian, fmt.group_size))[:2])
    assert best < 0.7 * searched
    assert best < 0.5 * nearest


def test_threads_change_nothing() -> None:
    w, hessian = problem(5000, 64)
    factored = gptq.factor(hessian, 32)
    one, two = (gptq.quantize(w, INT3, factored, threads) for threads in (1, 2))
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])


def test_dead_inputs_are_rounded_to_nearest_and_counted() -> None:
    w, hessian = problem(16, 64)
    hessian[[3, 40]] = 0
    hessian[:, [3, 40]] = 0
    factored = gptq.factor(hessian, 32)
    assert factored.dead == 2 and not factored.feedback[:, np.isin(factored.order, [3, 40])].any()
    q_weight, q_scale, _ = gptq.quantize(w, INT4, factored)
    error = np.abs(dequantize(q_weight, q_scale, INT4, 64) - w)[:, [3, 40]]
    inside = np.abs(w[:, [3, 40]]) <= 7 * np.abs(q_scale.astype(np.float32))
    assert (error <= np.abs(q_scale.astype(np.float32)) / 2 * 1.001)[inside].all()


def test_nothing_but_dead_inputs() -> None:
    w, _ = problem(16, 64)
    q_weight, q_scale, _ = gptq.quantize(w, INT4, gptq.factor(np.zeros((64, 64), np.float32), 32))
    assert np.abs(dequantize(q_weight, q_scale, INT4, 64) - w).max() < 0.5


def test_damping_grows_until_a_singular_hessian_can_be_factored() -> None:
    """Fewer samples than inputs, and a damping too small for float32 to see."""
    w, hessian = problem(16, 96, samples=8)
    factored = gptq.factor(hessian, 32, damping=1e-12)
    assert factored.damping > 1e-9
    q_weight, q_scale, _ = gptq.quantize(w, INT4, factored)
    assert output_error(w, dequantize(q_weight, q_scale, INT4, 96), hessian) < output_error(
        w, dequantize(*group.quantize(w, INT4), INT4, 96), hessian
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_activations_that_are_no_numbers_are_refused(value: float) -> None:
    hessian = np.eye(64, dtype=np.float32)
    hessian[5, 5] = value
    with pytest.raises(CheckpointError, match="calibration text hold NaN or infinity"):
        gptq.factor(hessian, 32)


@pytest.mark.parametrize(("value", "cause"), [(np.nan, "NaN or infinity"), (1e9, "too large for a float16 scale")])
def test_weights_that_no_scale_holds_are_refused(value: float, cause: str) -> None:
    w, hessian = problem(16, 64)
    w[3, 7] = value
    with pytest.raises(CheckpointError, match=cause):
        gptq.quantize(w, INT4, gptq.factor(hessian, 32))
