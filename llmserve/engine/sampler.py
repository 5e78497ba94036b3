"""Logits → tokens. Penalties, greedy choice and log-probabilities in numpy; the draw by a kernel, or by numpy as well.

A row's token depends on its logits, its parameters and its own random number, never on the rest of the batch. Rows that
are greedy and plain cost one argmax. Keeps no state: what a sequence has said is read from the sequence, and where it
stands in a grammar is the state of its matcher. The numpy draw is the reference that works on every platform.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection
from collections.abc import Sequence as Rows

import numpy as np
import numpy.typing as npt

from ..errors import EngineError
from .output import SampledToken, TokenLogprob
from .sampling_params import SamplingParams
from .scheduler import Sampled
from .sequence import Sequence

_Floats = npt.NDArray[np.float32]
_Ids = npt.NDArray[np.int64]

Draw = Callable[[_Floats, Rows[SamplingParams], Rows[float]], Collection[int]]
"""(logits float32 [R, vocab], parameters, random numbers in [0, 1)) → R token ids."""

_CUTS = (1e-3, 1e-5)  # of the largest weight
_BLOCK = 512


class Sampler:
    """Chooses tokens as `SamplingParams` ask.

    In order: logit_bias, repetition, presence and frequency penalties, grammar, min_tokens; then temperature, min_p,
    top_k, and top_p of what these left (vLLM's order). Log-probabilities are the model's own, from before all of this.
    """

    def __init__(self, eos_token_ids: Collection[int] = (), draw: Draw | None = None) -> None:
        """`draw` is the platform's kernel; None draws in numpy."""
        self._eos = list(eos_token_ids)
        self._draw = draw or draw_in_numpy

    def sample(self, logits: npt.NDArray[np.floating], sequences: Rows[Sequence]) -> list[Sampled]:
        """One result per row of `logits` (rows × vocabulary, float32): a token, or the error that ends its sequence."""
        raw = logits.astype(np.float32, copy=False)
        plain = list(raw)
        adjusted: list[_Floats] = []
        errors: dict[int, EngineError] = {}
        for i, sequence in enumerate(sequences):
            try:
                adjusted.append(self._adjust(plain[i], sequence))
            except EngineError as error:  # of its grammar; the others go on
                adjusted.append(plain[i])
                errors[i] = error
        tokens = [int(row.argmax()) for row in adjusted]  # of the first NaN, if there is one
        for i, sequence in enumerate(sequences):
            if i not in errors and not math.isfinite(value := adjusted[i][tokens[i]]):
                errors[i] = _not_finite(sequence, value)
        drawn = [i for i, s in enumerate(sequences) if i not in errors and not s.request.params.greedy]
        if drawn:
            untouched = len(drawn) == len(raw) and all(a is p for a, p in zip(adjusted, plain, strict=True))
            rows = raw if untouched else np.stack([adjusted[i] for i in drawn])
            uniforms = [_uniform(sequences[i].seed, len(sequences[i].token_ids)) for i in drawn]
            chosen = self._draw(rows, [sequences[i].request.params for i in drawn], uniforms)
            for i, token in zip(drawn, chosen, strict=True):
                tokens[i] = int(token)
        return [errors.get(i) or _sampled(raw[i], tokens[i], sequence) for i, sequence in enumerate(sequences)]

    def _adjust(self, raw: _Floats, sequence: Sequence) -> _Floats:
        """The logits with biases, penalties and bans applied; `raw` itself, untouched, where nothing is asked for."""
        params = sequence.request.params
        banned = sequence.num_generated_tokens < params.min_tokens
        repeats = params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        matcher = sequence.matcher
        if not (banned or repeats or matcher or params.logit_bias or params.repetition_penalty != 1.0):
            return raw
        row: _Floats = raw.copy()
        if params.logit_bias:
            row[list(params.logit_bias)] += np.fromiter(params.logit_bias.values(), np.float32)
        if params.repetition_penalty != 1.0:
            seen = np.array(sequence.token_ids)
            values = row[seen]
            row[seen] = np.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
        if repeats and sequence.num_generated_tokens:
            said, counts = np.unique(sequence.token_ids[sequence.num_prompt_tokens :], return_counts=True)
            row[said] -= params.presence_penalty + params.frequency_penalty * counts.astype(np.float32)
        if matcher is not None:
            _mask(row, matcher.mask())
        if banned:
            ids = [*(() if params.ignore_eos else self._eos), *params.stop_token_ids]
            values = row[ids]
            row[ids] = -np.inf
            if matcher is not None and np.isneginf(row).all():  # the grammar allows nothing but the end
                row[ids] = values
        return row


def _mask(row: _Floats, mask: bytes) -> None:
    """Rule out the tokens that a `Matcher.mask` does not allow."""
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")[: len(row)]
    row[: len(bits)][bits == 0] = -np.inf
    row[len(bits) :] = -np.inf


def _sampled(raw: _Floats, token: int, sequence: Sequence) -> Sampled:
    asked = sequence.request.params.logprobs
    try:
        forced = () if sequence.matcher is None else sequence.matcher.accept(token)
    except EngineError as error:
        return error
    return SampledToken(token, None if asked is None else logprob(raw, token, asked), forced)


def _not_finite(sequence: Sequence, value: float) -> EngineError:
    return EngineError(f"The model's logits for token {len(sequence.token_ids)} are not finite: {value}.")


def draw_in_numpy(rows: _Floats, params: Rows[SamplingParams], uniforms: Rows[float]) -> list[int]:
    """A token for each row of finite-peaked logits; see `Draw`."""
    return [_choose(row, float(row.max()), p, u) for row, p, u in zip(rows, params, uniforms, strict=True)]


def _uniform(seed: int, position: int) -> float:
    """The random number in [0, 1) of a position in a sequence: a hash, so there is no generator to replay."""
    digest = hashlib.blake2b(position.to_bytes(8, "little"), key=seed.to_bytes(8, "little"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _choose(row: _Floats, peak: float, params: SamplingParams, uniform: float) -> int:
    """Draw from softmax(row / temperature) after min_p, top_k and top_p."""
    with np.errstate(over="ignore"):  # a ban may be the least float instead of -inf
        weights = np.exp((row - np.float32(peak)) / np.float32(params.temperature))  # 1 at the peak
    if params.top_k <= 0 and params.top_p >= 1.0 and params.min_p <= 0.0:
        return _draw(weights, uniform)
    ids = _kept(weights, params)
    return int(ids[_draw(weights[ids], uniform)])


def _kept(weights: _Floats, params: SamplingParams) -> _Ids:
    """The ids that min_p, top_k and top_p leave, in rising order. Of equals the lower id stays, as argmax has it."""
    ids, kept = _candidates(weights, params)
    if 0 < params.top_k < len(kept):
        chosen = _largest(kept, None, params.top_k)
        ids, kept = (chosen if ids is None else ids[chosen]), kept[chosen]
    if params.top_p < 1.0:
        base = kept if params.top_k > 0 or params.min_p > 0.0 else weights
        chosen = _largest(kept, kept, params.top_p * float(base.sum()))
        ids = chosen if ids is None else ids[chosen]
    return np.arange(len(kept)) if ids is None else ids


def _candidates(weights: _Floats, params: SamplingParams) -> tuple[_Ids | None, _Floats]:
    """What min_p keeps, or else some that are sure to hold what top_k or top_p keep: their ids (None for all), weights.

    Real distributions are peaked: what reaches a thousandth of the largest weight is mostly enough, and little.
    """
    for cut in (params.min_p,) if params.min_p > 0.0 else _CUTS:
        ids = np.flatnonzero(weights >= cut)
        kept = weights[ids]
        if params.min_p > 0.0:
            return ids, kept
        if len(ids) >= params.top_k if params.top_k > 0 else float(kept.sum()) >= params.top_p * float(weights.sum()):
            return ids, kept
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


def _draw(weights: _Floats, uniform: float) -> int:
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


def logprob(raw: _Floats, token: int, count: int) -> TokenLogprob:
    """The log-probability of a token under these logits, and those of the `count` likeliest."""
    peak = float(raw.max())
    norm = peak + math.log(float(np.exp(raw - np.float32(peak)).sum()))
    top: list[tuple[int, float]] = []
    if count:
        count = min(count, len(raw))
        ids = np.argpartition(raw, len(raw) - count)[len(raw) - count :]
        ids = ids[np.lexsort((ids, -raw[ids]))]
        top = [(int(i), float(raw[i]) - norm) for i in ids]
    return TokenLogprob(token, float(raw[token]) - norm, tuple(top))
