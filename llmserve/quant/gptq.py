"""GPTQ (Frantar et al. 2022, arXiv:2210.17323): rounding in which later inputs compensate the errors of earlier ones.

Written as LDLQ, which Chee et al. 2023 (arXiv:2307.13304, theorem 6) show to give the same result without inverting
anything: with H = (I + A) D (I + A)ᵀ, A strictly upper triangular, column k is rounded to Q(w_k - Σ_{i<k} e_i · A_ik),
e = ŵ - w, and the error tr(E H Eᵀ) is Σ_k D_k · (rounding error of column k)². That sum is what a group's scale is
chosen by: each candidate is run through the group, feedback included, so scales are not fixed beforehand. Inputs are
taken in the order of their energy, group by group and within each group; the storage order stays.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError
from .group import GroupFormat, as_float32, pack
from .scale_search import candidates, half, round_to_nearest_scale

Array = npt.NDArray[np.float32]

DAMPING = 0.01
"""Added to H's diagonal, as a share of its mean."""
_REFINEMENTS = 2
_ROWS = 1024  # rows of a block: the columns of all candidates take some 2 MB


@dataclass(frozen=True)
class Factor:
    """H = (I + A) D (I + A)ᵀ over the inputs in the order of `order`.

    Attributes:
        order: of inputs int64 [K]: whole groups one after another, though each permuted within.
        feedback: A float32 [K, K], strictly upper triangular.
        energy: D float32 [K].
        damping: the share of the mean diagonal that was added at last.
        dead: inputs that were 0 in all of the calibration.
    """

    order: npt.NDArray[np.int64]
    feedback: Array
    energy: Array
    damping: float
    dead: int


def factor(hessian: Array, group_size: int, damping: float = DAMPING) -> Factor:
    """Factors H [K, K] = Xᵀ X, symmetric; it is not changed. Inputs that are dead get a diagonal of the mean, so that
    they are rounded to nearest; damping grows tenfold until Cholesky's factorisation succeeds.

    Raises CheckpointError when H holds NaN or infinity, or no damping helps.
    """
    diagonal = np.diagonal(hessian).copy()
    if not np.isfinite(diagonal).all():
        raise CheckpointError("The activations of the calibration text hold NaN or infinity.")
    dead = diagonal <= 0
    mean = float(diagonal.mean()) or 1.0
    order = _order(diagonal, group_size)
    # Cholesky's factor is lower triangular; of the matrix in reversed order it becomes the upper one that is wanted.
    backwards = order[::-1]
    while damping <= 10:
        matrix = hessian[np.ix_(backwards, backwards)]
        matrix[np.diag_indices_from(matrix)] += np.where(dead, mean, damping * mean)[backwards]
        try:
            lower = np.linalg.cholesky(matrix)
        except np.linalg.LinAlgError:
            damping *= 10
            continue
        root = np.diagonal(lower)[::-1].copy()
        if np.isfinite(root).all() and root.min() > 0:
            upper = lower[::-1, ::-1]
            upper /= root
            feedback = np.ascontiguousarray(upper)
            feedback[np.diag_indices_from(feedback)] = 0
            return Factor(order, feedback, root * root, damping, int(dead.sum()))
        damping *= 10
    raise CheckpointError("The second moments of the activations cannot be factored, whatever the damping.")


def quantize(
    w: npt.NDArray[Any], fmt: GroupFormat, factored: Factor, threads: int = 1
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float16], float]:
    """Quantizes float weights [N, K] to what `group.quantize` returns, and the error Σ D · e² that is left.

    Raises CheckpointError for NaN, infinity, and groups whose scale overflows float16.
    """
    n, k = w.shape
    values = np.ascontiguousarray(as_float32(w).T[factored.order])
    errors = np.empty((k, n), np.float32)  # of the columns that are done, in their order
    levels = np.full((n, fmt.padded(k)), fmt.max_int, np.uint8)  # padding is zero
    q_scale = np.empty((n, fmt.groups(k)), np.float16)
    blocks = [slice(start, min(start + _ROWS, n)) for start in range(0, n, _ROWS)]
    left, done = 0.0, 0
    with ThreadPoolExecutor(threads) as pool:
        while done < k:
            group = int(factored.order[done]) // fmt.group_size
            inside = slice(done, done + min(fmt.group_size, k - group * fmt.group_size))
            within, energy = factored.feedback[inside, inside], factored.energy[inside]
            # The one large product, and BLAS's threads have it to themselves; below, each thread has rows of its own.
            targets = values[inside] - factored.feedback[:done, inside].T @ errors[:done]
            search = partial(_search, values[inside], targets, fmt, within, energy)
            for block, (scale, chosen, cost) in zip(blocks, pool.map(search, blocks), strict=True):
                errors[inside, block] = chosen * scale - values[inside, block]
                levels[block, factored.order[inside]] = chosen.T + fmt.max_int
                q_scale[block, group] = scale
                left += float(cost.sum())
            done = inside.stop
    return pack(levels, fmt), q_scale, left


def _order(energy: Array, group_size: int) -> npt.NDArray[np.int64]:
    """Groups by their energy, and the inputs of each by theirs, the largest first."""
    k = len(energy)
    groups = np.pad(energy, (0, -k % group_size)).reshape(-1, group_size)
    first = np.argsort(-groups.sum(axis=1), kind="stable")
    within = np.argsort(-groups, axis=1, kind="stable")
    order = (first[:, None] * group_size + within[first]).reshape(-1)
    return order[order < k].astype(np.int64)


def _search(
    all_values: Array, targets: Array, fmt: GroupFormat, within: Array, energy: Array, rows: slice
) -> tuple[Array, Array, Array]:
    """Scale [n], signed levels [G, n] and error [n] of some rows, for a group's weights `all_values` [G, N], of which
    `targets` [G, N] is what feedback from the groups before has made."""
    values, target = (np.ascontiguousarray(array[:, rows]) for array in (all_values, targets))
    by_row = np.ascontiguousarray(target.T)
    tried = np.stack([round_to_nearest_scale(by_row, fmt), *candidates(by_row, fmt)])
    # Feedback of w itself, so that the group's own is that of ŵ alone: Σ e·A = Σ ŵ·A - Σ w·A.
    goal = target + _fed(values, within)
    levels, cost = _sweep(goal, tried, fmt, within, energy)
    best = cost.argmin(axis=0)
    at = np.arange(len(best))
    scale, chosen, least = tried[best, at], levels[:, best, at], cost[best, at]
    root = np.sqrt(energy)[:, None]
    weighted = goal * root
    for _ in range(_REFINEMENTS):  # least squares over the levels, in the norm of the whole group
        reach = (chosen + _fed(chosen, within)) * root
        square = (reach * reach).sum(axis=0)
        again = half(np.divide((reach * weighted).sum(axis=0), square, out=scale.copy(), where=square > 0))
        moved, cost = _sweep(goal, again[None], fmt, within, energy)
        better = cost[0] < least
        scale, least = np.where(better, again, scale), np.where(better, cost[0], least)
        chosen = np.where(better, moved[:, 0], chosen)
    return scale, chosen, least


def _fed(values: Array, within: Array) -> Array:
    """Σ_i values_i · A_ij for each column j of the group, [G, n]; einsum, since BLAS has threads of its own."""
    out = np.zeros_like(values)
    for j in range(1, len(values)):
        np.einsum("i,ic->c", within[:j, j], values[:j], out=out[j])
    return out


def _sweep(goal: Array, scales: Array, fmt: GroupFormat, within: Array, energy: Array) -> tuple[Array, Array]:
    """Rounds a group's columns one after another with each of `scales` [C, n]: (levels [G, C, n], errors [C, n])."""
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0).reshape(-1)
    flat = scales.reshape(-1)
    low, high = -fmt.max_int, (1 << fmt.bits) - 1 - fmt.max_int
    levels = np.empty((len(goal), flat.size), np.float32)
    products = np.empty_like(levels)
    cost = np.zeros(flat.size, np.float32)
    for j, column in enumerate(goal):
        wanted = np.broadcast_to(column, scales.shape).reshape(-1)
        if j:
            wanted = wanted - np.einsum("i,ic->c", within[:j, j], products[:j])
        level = np.multiply(wanted, inverse, out=levels[j])
        np.rint(level, out=level)
        np.clip(level, low, high, out=level)
        error = np.multiply(level, flat, out=products[j]) - wanted
        error *= error
        error *= energy[j]
        cost += error
    return levels.reshape(len(goal), *scales.shape), cost.reshape(scales.shape)
