"""Token-choice arguments, and the numpy reference sampler.

numpy's choice is the reference of every platform's kernel and serves where there is none. sampler.py makes these
arguments of what requests ask and what sequences have said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float32]
_Ids = npt.NDArray[np.int64]

MIN_P_CUTS = (1e-3, 1e-5)  # of the largest weight
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class ChoiceArguments:
    """The arguments by which a token is chosen for each of R rows of logits; kernels/base.py has all details.

    knobs float32 [R, 4]: 1 / temperature (0 is greedy), top_p, min_p, a random number in [0, 1).
    limits int32 [R, 4]: top_k (0 for all), the row's mask (-1 for none), its first adjustment, one past its last.
    ids int32 [A], amounts float32 [A, 3]: adjustments, of a row's ids no two alike: what is added, the repetition
    penalty, what is subtracted (infinity bans). masks int32 [K, words]: bit i % 32 of word i // 32 allows token i.
    The first adjustment and the first mask belong to no row.
    """

    knobs: _Floats
    limits: npt.NDArray[np.int32]
    ids: npt.NDArray[np.int32]
    amounts: _Floats
    masks: npt.NDArray[np.int32]


Chosen = list[int]
"""A row's token, and the bits of its largest logit after adjustments and mask, float32: NaN's if one is. Where that is
not finite the token is of no use."""

Choose = Callable[[_Floats, ChoiceArguments], list[Chosen]]
"""(logits float32 [R, vocab], choices) → what was chosen for each row."""

_MAGNITUDE, _INFINITE = 0x7FFFFFFF, 0x7F800000


def is_finite(bits: int) -> bool:
    """Whether a float32 of these bits is."""
    return bits & _MAGNITUDE < _INFINITE


def peak_of(chosen: Chosen) -> float:
    """The row's largest logit."""
    return float(np.int32(chosen[1]).view(np.float32))


def choose_in_numpy(logits: _Floats, choices: ChoiceArguments) -> list[Chosen]:
    """A `Choose`; the logits stay as they are."""
    chosen = []
    for raw, knobs, limits in zip(logits, choices.knobs, choices.limits, strict=True):
        row = adjusted(raw, limits, choices)
        token = int(row.argmax())  # of the first NaN, if there is one
        peak, bits = float(row[token]), int(row[token].view(np.int32))
        if knobs[0] > 0 and np.isfinite(peak):
            token = _choose(row, peak, knobs, int(limits[0]))
        chosen.append([token, bits])
    return chosen


def adjusted(raw: _Floats, limits: npt.NDArray[np.int32], choices: ChoiceArguments) -> _Floats:
    """A row's logits with adjustments and mask applied; `raw` itself where nothing is asked for."""
    _, mask, start, stop = limits
    if mask < 0 and start == stop:
        return raw
    row: _Floats = raw.copy()
    ids, (bias, penalty, less) = choices.ids[start:stop], choices.amounts[start:stop].T
    values = row[ids] + bias
    values = np.where(values > 0, values / penalty, values * penalty)
    row[ids] = np.where(np.isposinf(less), -np.inf, values - less)
    if mask >= 0:
        bits = np.unpackbits(choices.masks[mask].view(np.uint8), bitorder="little")
        row[bits[: len(row)] == 0] = -np.inf
    return row


def _choose(row: _Floats, peak: float, knobs: _Floats, top_k: int) -> int:
    """Draw from softmax(row / temperature) after min_p, top_k and top_p."""
    inverse_temperature, top_p, min_p, uniform = knobs
    with np.errstate(over="ignore"):  # a ban may be the least float instead of -inf
        weights = np.exp((row - np.float32(peak)) * inverse_temperature)  # 1 at the peak
    if top_k <= 0 and top_p >= 1.0 and min_p <= 0.0:
        return draw(weights, float(uniform))
    ids = kept(weights, top_k, float(top_p), float(min_p))
    return int(ids[draw(weights[ids], float(uniform))])


def kept(weights: _Floats, top_k: int, top_p: float, min_p: float) -> _Ids:
    """The ids that min_p, top_k and top_p leave, in rising order. Of equals the lower id stays, as argmax has it."""
    ids, left = _candidates(weights, top_k, top_p, min_p)
    if 0 < top_k < len(left):
        chosen = _largest(left, None, top_k)
        ids, left = (chosen if ids is None else ids[chosen]), left[chosen]
    if top_p < 1.0:
        base = left if top_k > 0 or min_p > 0.0 else weights
        chosen = _largest(left, left, top_p * float(base.sum()))
        ids = chosen if ids is None else ids[chosen]
    return np.arange(len(left)) if ids is None else ids


def _candidates(weights: _Floats, top_k: int, top_p: float, min_p: float) -> tuple[_Ids | None, _Floats]:
    """Ids (None for all) and weights of what min_p keeps, or else of some that hold all that top_k or top_p keep.

    Real distributions are peaked: what reaches a thousandth of the largest weight is mostly enough, and little.
    """
    for cut in (min_p,) if min_p > 0.0 else MIN_P_CUTS:
        ids = np.flatnonzero(weights >= cut)
        left = weights[ids]
        if min_p > 0.0:
            return ids, left
        if len(ids) >= top_k if top_k > 0 else float(left.sum()) >= top_p * float(weights.sum()):
            return ids, left
        if len(ids) > len(weights) // 8:
            break
    return None, weights


def _largest(weights: _Floats, amounts: _Floats | None, wanted: float) -> _Ids:
    """Indices of the fewest largest weights (at least one) whose amounts, 1 each if None, add up to `wanted`.

    A histogram over the leading bits of the floats, which order as the floats do, finds the bin that the border falls
    into; only that bin is sorted.
    """
    bins = weights.view(np.int32) >> 16
    reached = np.cumsum(np.bincount(bins, weights=amounts)[::-1])
    rank = min(int(np.searchsorted(reached, wanted)), len(reached) - 1)
    border = len(reached) - 1 - rank
    edge = np.flatnonzero(bins == border)
    edge = edge[np.argsort(-weights[edge], kind="stable")]
    still = wanted - (float(reached[rank - 1]) if rank else 0.0)
    inside = np.arange(1, len(edge) + 1) if amounts is None else np.cumsum(amounts[edge], dtype=np.float64)
    keep = bins > border
    keep[edge[: int(np.searchsorted(inside, still)) + 1]] = True
    return np.flatnonzero(keep)


def draw(weights: _Floats, uniform: float) -> int:
    """An index, with probability proportional to its weight: the inverse of the cumulative sum, two levels deep."""
    starts = np.arange(0, len(weights), _BLOCK)
    blocks = np.cumsum(np.add.reduceat(weights, starts), dtype=np.float64)
    target = min(uniform * blocks[-1], np.nextafter(blocks[-1], 0.0))
    block = int(np.searchsorted(blocks, target, side="right"))
    target -= blocks[block - 1] if block else 0.0
    start = block * _BLOCK
    inside = np.cumsum(weights[start : start + _BLOCK], dtype=np.float64)
    at = int(np.searchsorted(inside, target, side="right"))
    if at == len(inside):  # the two levels' sums differ in the last bits
        at = int(np.flatnonzero(weights[start : start + _BLOCK])[-1])
    return start + at
