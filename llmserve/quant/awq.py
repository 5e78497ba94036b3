"""Activation-aware scaling of channels (AWQ, Lin et al. 2023, arXiv:2306.00978), folded into their producer.

If the columns of a matrix are multiplied by s and its input x is divided by s, the product stays the same, but columns
with large inputs are rounded more finely. The division costs nothing where x comes from a norm's weight or the rows of
a linear layer: rows have scales of their own, so their rounding does not change. s = energy^α, energy being the root of
a channel's second moment (the paper takes the mean of |x|), normed as there; α is the one of a grid that leaves the
least error of the output.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from . import gptq, scale_search
from .group import GroupFormat, dequantize

Array = npt.NDArray[np.float32]

ALPHAS = (0.0, 0.15, 0.3, 0.45, 0.6)
_ROWS = 128  # of a matrix, from all over it, that α is judged by


class Fold(Protocol):
    """A matrix and the producer of its input channels: channel c comes from row `rows[c]` of `producer`, or of
    its bias.

    `consumer` and `producer` are names of modules; a norm's weight has rows as well. The map need not be one to one:
    in grouped-query attention several channels come from one row of v, and share their s. Layers say theirs.
    """

    @property
    def consumer(self) -> str: ...

    @property
    def producer(self) -> str: ...

    @property
    def rows(self) -> npt.NDArray[np.int64]: ...


def apply(fold: Fold, scales: Array, weights: MutableMapping[str, Array]) -> None:
    """Multiplies the consumer's columns by scales [K] and divides the producer's rows by them, in `weights`, which has
    `<module>.weight` and `<module>.bias` in float32. The layer's output stays what it was."""
    weights[f"{fold.consumer}.weight"] = weights[f"{fold.consumer}.weight"] * scales
    for kind in ("weight", "bias"):
        if (array := weights.get(f"{fold.producer}.{kind}")) is not None:
            divisor = np.ones(len(array), np.float32)
            divisor[fold.rows] = scales
            weights[f"{fold.producer}.{kind}"] = array / divisor.reshape(-1, *(1,) * (array.ndim - 1))


def moments(fold_scales: Array, second: Array) -> Array:
    """Second moments [K, K] of the channels when they are divided by scales [K]."""
    inverse = np.float32(1) / fold_scales
    return second * inverse[:, None] * inverse


def channel_scales(fold: Fold, second: Array, alpha: float) -> Array:
    """s [K] for an α: alike for channels of one row, and with √(max · min) = 1 as in the paper. Channels that are dead
    count as the weakest that is not."""
    energy = np.zeros(int(fold.rows.max()) + 1, np.float64)
    np.add.at(energy, fold.rows, np.diagonal(second).astype(np.float64))
    energy /= np.maximum(np.bincount(fold.rows), 1)
    alive = energy[energy > 0]
    if not alive.size:
        return np.ones(len(fold.rows), np.float32)
    scales = np.maximum(energy, alive.min())[fold.rows] ** (alpha / 2)
    return (scales / np.sqrt(scales.max() * scales.min())).astype(np.float32)


def choose(fold: Fold, w: Array, second: Array, fmt: GroupFormat, factored: gptq.Factor | None) -> tuple[Array, float]:
    """(s [K], α) that leave the least error in the output of w [N, K], judged by some of its rows.

    With `factored`, of `second`, by what GPTQ leaves; else by what a search of scales does.
    """
    rows = w[np.linspace(0, len(w) - 1, min(len(w), _ROWS)).astype(int)]
    judge = _after_search(rows, second, fmt) if factored is None else _after_gptq(rows, factored, fmt)
    tried = [(judge(scales), alpha, scales) for alpha in ALPHAS for scales in [channel_scales(fold, second, alpha)]]
    _, alpha, scales = min(tried, key=lambda one: one[:2])
    return scales, alpha


def _after_gptq(rows: Array, factored: gptq.Factor, fmt: GroupFormat) -> Callable[[Array], float]:
    def judge(scales: Array) -> float:
        return gptq.quantize(rows * scales, fmt, scaled(factored, scales))[2]

    return judge


def scaled(factored: gptq.Factor, scales: Array) -> gptq.Factor:
    """The factor of S⁻¹ H S⁻¹, S = diag(scales): with H = (I + A) D (I + A)ᵀ that is A_ij · s_j / s_i and D / s²."""
    ordered = scales[factored.order]
    feedback = factored.feedback * ordered / ordered[:, None]
    return replace(factored, feedback=feedback, energy=factored.energy / ordered**2)


def _after_search(rows: Array, second: Array, fmt: GroupFormat) -> Callable[[Array], float]:
    def judge(scales: Array) -> float:
        importance: Any = np.diagonal(second) / scales**2
        q_weight, q_scale = scale_search.quantize(rows * scales, fmt, importance)
        error = dequantize(q_weight, q_scale, fmt, rows.shape[1]) / scales - rows
        return float(np.einsum("ij,ij->", error @ second, error))

    return judge
