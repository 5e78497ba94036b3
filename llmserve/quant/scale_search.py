"""Search of group scales, instead of scales by the largest weight: signed, and with every level of the format in use.

A format stores u in 0 … 2^bits - 1 for (u - max_int) · scale, so one side of zero has a level more than the other; a
negative scale gives it to the other side. The error that counts is a weighted one, so clipping the largest weight is
taken where it pays. Candidates are fractions of the largest weight, as in AWQ's clip search (Lin et al. 2023,
arXiv:2306.00978); the best is refined by least squares over its own levels, alternating with rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError
from .group import GroupFormat, grouped, pack, row_blocks

Array = npt.NDArray[np.float32]

STEPS = {3: 12, 4: 8, 8: 4}
"""Candidates of each sign that are tried, by bits: the finer the levels, the less there is to win."""
_REFINEMENTS = 2


def quantize(
    w: npt.NDArray[Any], fmt: GroupFormat, importance: Array | None = None
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float16]]:
    """Quantizes float weights [N, K] as `group.quantize` does, with scales that are searched for.

    `importance` [K] weighs the squared error of each input, as the diagonal of the inputs' second moments does; None
    weighs all alike. No group's weighted error is above that of `group.quantize`. Raises CheckpointError likewise.
    """
    n, k = w.shape
    q_weight = np.empty((n, fmt.words(k)), np.uint32)
    q_scale = np.empty((n, fmt.groups(k)), np.float16)
    weights = np.ones(k, np.float32) if importance is None else importance
    weights = np.pad(weights, (0, fmt.padded(k) - k)).reshape(fmt.groups(k), fmt.group_size)
    for rows in row_blocks(n, fmt.padded(k) * STEPS[fmt.bits]):
        groups = grouped(w[rows], fmt)
        scales = search(groups, weights, fmt)
        q_scale[rows] = scales
        levels = rounded(groups, scales[..., None], fmt) + np.float32(fmt.max_int)
        q_weight[rows] = pack(levels.astype(np.uint8).reshape(len(levels), -1), fmt)
    return q_weight, q_scale


def search(groups: Array, weights: Array, fmt: GroupFormat) -> Array:
    """The best scales found, float32 [...] of float16 values, for groups [..., G] with error weights that broadcast."""
    best = scales = round_to_nearest_scale(groups, fmt)
    least = error(groups, scales, weights, fmt)
    for scales in candidates(groups, fmt):
        best, least = _better(groups, scales, weights, fmt, best, least)
    for _ in range(_REFINEMENTS):
        levels = rounded(groups, best[..., None], fmt)
        best, least = _better(groups, least_squares(groups, levels, weights, best), weights, fmt, best, least)
    return best


def round_to_nearest_scale(groups: Array, fmt: GroupFormat) -> Array:
    """max|w| / max_int as a float16 value, float32 [...]; what `group.quantize` takes. Raises CheckpointError."""
    largest = np.maximum(groups.max(axis=-1), -groups.min(axis=-1))
    with np.errstate(over="ignore"):
        scales = half(largest / np.float32(fmt.max_int))
    if not np.isfinite(scales).all():
        cause = "a weight too large for a float16 scale" if np.isfinite(largest).all() else "NaN or infinity"
        raise CheckpointError(f"The weights hold {cause}.")
    return scales


def candidates(groups: Array, fmt: GroupFormat) -> list[Array]:
    """Scales to try, each [...], of both signs: they put the largest weight on levels from max_int · ⅘ to
    (max_int + 1) · ⁵⁄₄, and so beyond the last one, where it is clipped."""
    largest = np.maximum(groups.max(axis=-1), -groups.min(axis=-1))
    levels = np.linspace(fmt.max_int * 0.8, (fmt.max_int + 1) * 1.25, STEPS[fmt.bits], dtype=np.float32)
    return [half(sign * largest / level) for level in levels for sign in (np.float32(1), np.float32(-1))]


def rounded(values: Array, scales: Array, fmt: GroupFormat) -> Array:
    """The signed levels nearest to values / scales, -max_int … max_int + 1, float32; level 0 where the scale is 0."""
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
    levels = values * inverse
    np.rint(levels, out=levels)
    return np.clip(levels, -fmt.max_int, (1 << fmt.bits) - 1 - fmt.max_int, out=levels)


def error(groups: Array, scales: Array, weights: Array, fmt: GroupFormat) -> Array:
    """Σ weights · (w - ŵ)² of each group, [...]."""
    difference = rounded(groups, scales[..., None], fmt)
    difference *= scales[..., None]
    difference -= groups
    difference *= difference
    difference *= weights
    total: Array = difference.sum(axis=-1)
    return total


def least_squares(groups: Array, levels: Array, weights: Array, otherwise: Array) -> Array:
    """The scales that are best for given levels: Σ h·w·q / Σ h·q², as float16 values; `otherwise` where all q are 0."""
    weighted = levels * weights
    square = (weighted * levels).sum(axis=-1)
    product = (weighted * groups).sum(axis=-1)
    return half(np.divide(product, square, out=otherwise.copy(), where=square > 0))


def half(scales: Array) -> Array:
    """Rounded to float16, in float32."""
    return np.asarray(scales).astype(np.float16).astype(np.float32)


def _better(
    groups: Array, scales: Array, weights: Array, fmt: GroupFormat, best: Array, least: Array
) -> tuple[Array, Array]:
    errors = error(groups, scales, weights, fmt)
    better = errors < least
    return np.where(better, scales, best), np.where(better, errors, least)
