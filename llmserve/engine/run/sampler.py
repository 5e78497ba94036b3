"""The sampler: what sequences ask of their next tokens as arrays, and the tokens that a kernel chose as results.

A row's token depends on its logits, its parameters and its own random number, never on the rest of the batch. A kernel
chooses (or numpy, in choices.py); logits stay on the device unless their probabilities are asked for. Nothing is kept
here that could not be read from the sequences again.
"""

from __future__ import annotations

import hashlib
import logging
import math
import struct
from collections.abc import Callable, Collection, Iterator, MutableMapping
from collections.abc import Sequence as Items
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ...errors import EngineError, is_exit
from ..plan.outputs import SampledToken, TokenLogprob
from ..plan.scheduler import Sampled
from ..plan.sequence import Sequence
from .adjustments import Adjustments, adjusts
from .choices import ChoiceArguments, Choose, Chosen, choose_in_numpy, is_finite, peak_of

logger = logging.getLogger(__name__)

_Floats = npt.NDArray[np.float32]

_BELOW_ONE = 1 - 2**-24  # what float64 has below 1 may round to it in float32
_UNIFORMS = 8  # random numbers in a digest


@dataclass(slots=True)
class SamplingBatch:
    """Items that are to be sampled, in order, and what of each of them has to be looked at in every step.

    Attributes:
        choices: for the kernel.
        errors: rows that fail whatever their logits are, and why.
    """

    sequences: list[Sequence]
    choices: ChoiceArguments
    errors: dict[int, EngineError] = field(default_factory=dict)
    _drawn: list[int] = field(default_factory=list)
    _changing: list[int] = field(default_factory=list)  # rows with a matcher, or adjustments
    _reported: list[int] = field(default_factory=list)  # rows with a matcher, or log-probabilities


class Sampler:
    """Chooses tokens as `SamplingParams` ask.

    In order: logit_bias, repetition, presence and frequency penalties, grammar, min_tokens; then temperature, min_p,
    top_k, and top_p of what these left (vLLM's order). Log-probabilities are the model's own, from before all of this.
    """

    def __init__(self, eos_token_ids: Collection[int] = (), choose: Choose = choose_in_numpy) -> None:
        """`choose` is for `sample`; who uses `prepare` and `finish` chooses in between."""
        self._eos = tuple(eos_token_ids)
        self._choose = choose
        self._adjustments: dict[Sequence, Adjustments] = {}  # of the last batch's sequences
        self._last: SamplingBatch | None = None

    def sample(self, logits: npt.NDArray[np.floating], sequences: Items[Sequence]) -> list[Sampled]:
        """One result per row of `logits` (rows × vocabulary, float32): a token, or the error that ends its sequence."""
        raw = logits.astype(np.float32, copy=False)
        batch = self.prepare(sequences, raw.shape[1])
        return self.finish(batch, self._choose(raw, batch.choices), lambda row: raw[row])

    def prepare(self, sequences: Items[Sequence], vocab_size: int) -> SamplingBatch:
        """The arguments of a kernel for the next token of each sequence. Valid until the next call."""
        batch, self._last = self._last, None
        if batch is None or batch.sequences != sequences:  # sequences are equal if they are the same
            batch = _new_batch(list(sequences), vocab_size)
            self._adjustments = {s: self._adjustments[s] for s in sequences if s in self._adjustments}
        knobs = batch.choices.knobs
        for row in batch._drawn:
            sequence = batch.sequences[row]
            knobs[row, 3] = uniform(sequence.seed, len(sequence.token_ids))
        if batch._changing:
            self._adjust(batch, vocab_size)
        if not batch.errors:
            self._last = batch
        return batch

    def finish(self, batch: SamplingBatch, chosen: list[Chosen], logits: Callable[[int], _Floats]) -> list[Sampled]:
        """A result for each row from what a `Choose` gave; `logits` is asked for the rows that report on them."""
        results: list[Sampled] = [
            SampledToken(one[0]) if is_finite(one[1]) else _not_finite(sequence, peak_of(one))
            for sequence, one in zip(batch.sequences, chosen, strict=True)
        ]
        for row in batch._reported:
            result = results[row]
            if isinstance(result, SampledToken) and row not in batch.errors:
                with _alone(results, row):
                    results[row] = _reported(batch.sequences[row], row, result.token_id, logits)
        for row, error in batch.errors.items():
            results[row] = error
        return results

    def _adjust(self, batch: SamplingBatch, vocab_size: int) -> None:
        """Masks and adjustments of this step."""
        masks: list[bytes] = []
        rows: list[tuple[int, Adjustments, bool]] = []
        limits = batch.choices.limits
        end = 1
        for row in batch._changing:
            limits[row, 1:] = -1, 0, 0
            with _alone(batch.errors, row):
                sequence = batch.sequences[row]
                mask = None if sequence.matcher is None else sequence.matcher.mask()
                own = self._own(sequence)
                banned = sequence.num_generated_tokens < sequence.request.params.min_tokens
                if banned and own is not None and mask is not None:
                    # A grammar that allows nothing but the end wins.
                    banned = _allows_others(mask, own.ends, vocab_size)
                if mask is not None:
                    masks.append(mask)
                    limits[row, 1] = len(masks)
                if own is not None:
                    limits[row, 2:] = end, end + len(own)
                    end += len(own)
                    rows.append((row, own, banned))
        ids, amounts = np.zeros(end, np.int32), np.zeros((end, 3), np.float32)
        for row, own, banned in rows:
            _, _, start, stop = limits[row]
            own.write(ids[start:stop], amounts[start:stop], banned)
        batch.choices = ChoiceArguments(batch.choices.knobs, limits, ids, amounts, _mask_words(masks, vocab_size))

    def _own(self, sequence: Sequence) -> Adjustments | None:
        """What the sequence adjusts, its last tokens taken in; None if nothing."""
        params = sequence.request.params
        if not adjusts(params):
            return None
        own = self._adjustments.get(sequence)
        if own is None:
            own = self._adjustments[sequence] = Adjustments(params, self._eos)
        own.update(sequence)
        return own


def _new_batch(sequences: list[Sequence], vocab_size: int) -> SamplingBatch:
    """Items as their parameters alone have them."""
    knobs, limits = np.zeros((len(sequences), 4), np.float32), np.zeros((len(sequences), 4), np.int32)
    ids, amounts = np.zeros(1, np.int32), np.zeros((1, 3), np.float32)
    batch = SamplingBatch(sequences, ChoiceArguments(knobs, limits, ids, amounts, _mask_words([], vocab_size)))
    for row, sequence in enumerate(sequences):
        limits[row] = 0, -1, 0, 0
        with _alone(batch.errors, row):
            params = sequence.request.params
            limits[row, 0] = params.top_k if 0 < params.top_k < vocab_size else 0
            if sequence.matcher is not None or adjusts(params):
                batch._changing.append(row)
            if sequence.matcher is not None or params.logprobs is not None:
                batch._reported.append(row)
            if not params.greedy:
                knobs[row] = 1 / params.temperature, params.top_p, params.min_p, 0.0
                batch._drawn.append(row)
    return batch


@contextmanager
def _alone(results: MutableMapping[int, EngineError] | list[Sampled], row: int) -> Iterator[None]:
    """Whatever fails here is one row's error: the others go on."""
    try:
        yield
    except EngineError as error:
        results[row] = error
    except BaseException as error:
        if is_exit(error):
            raise
        logger.exception("a row of the batch failed")
        results[row] = EngineError(f"This request's next token cannot be chosen: {type(error).__name__}: {error}.")


def _mask_words(masks: list[bytes], vocab_size: int) -> npt.NDArray[np.int32]:
    """Masks of any lengths as rows of words, after an unused first; what lies beyond a mask's end may not be chosen."""
    words = np.zeros((1 + len(masks), -(-vocab_size // 32)), "<i4")
    for row, mask in zip(words.view(np.uint8)[1:], masks, strict=True):
        row[: len(mask)] = np.frombuffer(mask, np.uint8)[: len(row)]
    return words


def _allows_others(mask: bytes, ends: list[int], vocab_size: int) -> bool:
    """Whether a grammar leaves anything in the vocabulary beside these."""
    allowed = int.from_bytes(mask, "little") & ((1 << vocab_size) - 1)
    for token_id in ends:
        allowed &= ~(1 << token_id)
    return allowed != 0


def _reported(sequence: Sequence, row: int, token: int, logits: Callable[[int], _Floats]) -> Sampled:
    """A token of a sequence that has a grammar, or wants log-probabilities."""
    asked = sequence.request.params.logprobs
    forced = () if sequence.matcher is None else sequence.matcher.accept(token)
    return SampledToken(token, None if asked is None else logprob(logits(row), token, asked), forced)


def _not_finite(sequence: Sequence, value: float) -> EngineError:
    return EngineError(f"The model's logits for token {len(sequence.token_ids)} are not finite: {value}.")


def uniform(seed: int, position: int) -> float:
    """The random number in [0, 1) of a position in a sequence, also as a float32: a hash, so there is no generator to
    replay."""
    block, at = divmod(position, _UNIFORMS)
    return _uniforms(seed, block)[at]


@lru_cache(maxsize=1024)  # some for each sequence that runs
def _uniforms(seed: int, block: int) -> tuple[float, ...]:
    """Those of _UNIFORMS positions at once: a step may then find its own made already."""
    key = seed.to_bytes(8, "little")
    digest = hashlib.blake2b(block.to_bytes(8, "little"), key=key, digest_size=8 * _UNIFORMS).digest()
    return tuple([min((word >> 11) * 2.0**-53, _BELOW_ONE) for word in struct.unpack(f"<{_UNIFORMS}Q", digest)])


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
