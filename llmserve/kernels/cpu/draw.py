"""The draw on CPUs: a token by its weight, from those that min_p, top_k and top_p leave, without a sort.

Weights order as their float32 bits do, so the smallest one that top_k or top_p keep is searched for over bit patterns,
each probe a vectorised pass over the blocks that add to the sum. Of equal weights the lower ids are kept.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..tir import T, block, f32, full, i32, put, scratch, vec, when
from .vector_math import across

BLOCK = 512  # ids that are summed together before the draw looks at single ones
PROBES = 3  # bit patterns that one pass of a search tries
STREAMS = 2  # independent accumulators for each of them
_ONE = 0x3F800000  # bits of 1.0, the largest weight
_SLACK = 2.0**-10  # of a mass: more than sums of a row are off by
_LEAST = 2.0**-120

Amount = Callable[[Any, Any], Any]
"""(bits, weights) → what each adds to a sum, vectors."""


def bits_of(value: Any, lanes: int) -> Any:
    """float32 as int32."""
    return T.reinterpret(value, dtype="int32" if lanes == 1 else f"int32x{lanes}")


def float_of(bits: Any, lanes: int) -> Any:
    """int32 as float32."""
    return T.reinterpret(bits, dtype="float32" if lanes == 1 else f"float32x{lanes}")


@dataclass(frozen=True)
class Drawing:
    """The state of a draw, over rows whose weights are known: see `sampling.sample`.

    `work` has the bits of the weights, 1 at the peak and zero in the padding, `maxima` and `masses` the blocks' largest
    bits and sums, `knobs` and `limits` what is asked for.
    """

    vocab: int
    lanes: int
    knobs: Any
    limits: Any
    chosen: Any
    work: Any
    maxima: Any
    masses: Any

    @property
    def _blocks(self) -> int:
        return -(-self.vocab // BLOCK)

    def draw(self, row: Any) -> None:
        """chosen[row, 0] = a token that stays, by the inverse of the cumulative sum over those, in rising order.

        What stays: weights whose bits are above `border`, and of those that equal it the ones up to id `last`.
        """
        top_p, min_p, uniform = (self.knobs[row, i] for i in (1, 2, 3))
        top_k = self.limits[row, 0]
        border, last = scratch(1, "int32"), scratch(1, "int32")
        put(border, T.max(bits_of(min_p, 1), i32(1)), 0)  # zeros never stay
        put(last, i32(self.vocab), 0)
        filters = T.Or(T.Or(min_p > f32(0), top_k > 0), top_p < f32(1))
        with when(filters), block("filter"):
            self._filter(row, top_k, top_p, min_p, border, last)
        with block("pick"):
            self._pick(row, uniform, border, last)

    def _filter(self, row: Any, top_k: Any, top_p: Any, min_p: Any, border: Any, last: Any) -> None:
        """Sets `border` and `last`, and the blocks' masses to those of what stays."""
        base, wanted, ties, before = scratch(1), scratch(1), scratch(1, "int32"), scratch(2, "int32")
        sums = scratch(PROBES)
        put(ties, i32(self.vocab), 0)
        put(base, f32(0), 0)
        with T.serial(self._blocks) as i:
            put(base, base[0] + self.masses[row, i], 0)
        with when(min_p > f32(0)):
            self._reduce(row, border[0], [self._at_least(border[0], _itself)], sums)
            put(base, sums[0], 0)
        with when(top_k > 0), block("top_k"):
            put(wanted, T.cast(top_k, "float32"), 0)
            with when(top_k <= self._blocks):  # as many blocks have one each that is no less than this
                self._search(border, wanted, lambda bounds: self._count_maxima(row, bounds, sums), sums)
            self._search(border, wanted, self._probe(row, self._one, sums), sums)
            value = float_of(border[0], 1)
            above, equal = self._at_least(border[0] + 1, self._one), self._equal(border[0])
            self._reduce(row, border[0], [above, self._at_least(border[0] + 1, _itself), equal], sums)
            # Fewer than k were there: the border is where it was, and all that equal it stay.
            put(ties, T.max(top_k - T.cast(sums[0], "int32"), 0), 0)
            put(base, sums[1] + value * T.min(sums[2], T.cast(ties[0], "float32")), 0)
        with when(top_p < f32(1)), block("top_p"):
            put(wanted, top_p * base[0], 0)
            put(before, border[0], 0)
            put(before, ties[0], 1)
            # What is below this comes to less than what top_p leaves out.
            start = T.max(f32(1 - _SLACK) - top_p, f32(0)) * base[0] * f32(1 / self.vocab)
            put(border, T.max(border[0], bits_of(start, 1)), 0)
            self._search(border, wanted, self._probe(row, _itself, sums), sums)
            self._reduce(row, border[0], [self._at_least(border[0] + 1, _itself)], sums)
            missing = (wanted[0] - sums[0]) / T.max(float_of(border[0], 1), f32(_LEAST))
            put(ties, T.max(T.cast(T.ceil(T.min(missing, f32(2.0**24))), "int32"), 1), 0)
            with when(border[0] == before[0]):
                put(ties, T.min(ties[0], before[1]), 0)
        self._settle(row, border, ties, last)

    def _settle(self, row: Any, border: Any, ties: Any, last: Any) -> None:
        """The masses of what stays, and the id of the last of `ties` weights that equal the border."""
        seen, at, sums = scratch(1, "int32"), scratch(1, "int32"), scratch(2)
        put(seen, i32(0), 0)
        with T.serial(self._blocks) as index, T.If(self.maxima[row, index] < border[0]):
            with T.Then():
                put(self.masses, f32(0), row, index)
            with T.Else(), block("mass"):
                self._reduce_block(row, index, [self._at_least(border[0] + 1, _itself), self._equal(border[0])], sums)
                equal = T.cast(sums[1], "int32")
                kept = T.cast(T.min(ties[0] - seen[0], equal), "float32")
                put(self.masses, sums[0] + float_of(border[0], 1) * kept, row, index)
                with when(T.And(last[0] == self.vocab, seen[0] + equal > ties[0])):
                    put(at, index * BLOCK - 1, 0)
                    put(last, ties[0] - seen[0], 0)  # as many are still to come
                    with T.While(last[0] > 0):
                        put(at, at[0] + 1, 0)
                        with when(self.work[row, at[0]] == border[0]):
                            put(last, last[0] - 1, 0)
                    put(last, at[0], 0)
                put(seen, T.min(seen[0] + equal, ties[0]), 0)

    def _pick(self, row: Any, uniform: Any, border: Any, last: Any) -> None:
        total, mass, target = scratch(1), scratch(1), scratch(1)
        at, end, found = scratch(1, "int32"), scratch(1, "int32"), scratch(1, "int32")
        put(total, f32(0), 0)
        with T.serial(self._blocks) as i:
            put(total, total[0] + self.masses[row, i], 0)
        put(target, uniform * total[0], 0)
        put(mass, f32(0), 0)
        put(at, i32(0), 0)
        put(end, i32(0), 0)  # the last block that has something
        put(found, i32(0), 0)
        with T.While(T.And(found[0] == 0, at[0] < self._blocks)):
            with when(self.masses[row, at[0]] > f32(0)):
                put(end, at[0], 0)
                with T.If(mass[0] + self.masses[row, at[0]] > target[0]):
                    with T.Then():
                        put(found, i32(1), 0)
                    with T.Else():
                        put(mass, mass[0] + self.masses[row, at[0]], 0)
            put(at, at[0] + 1, 0)
        with when(found[0] == 0):
            put(mass, f32(-1e30), 0)  # rounding: nothing crosses the target, so take the last that stays
        put(at, end[0] * BLOCK, 0)
        put(end, at[0] + BLOCK, 0)
        with T.While(at[0] < end[0]):
            bits = self.work[row, at[0]]
            with when(T.Or(bits > border[0], T.And(bits == border[0], at[0] <= last[0]))):
                put(self.chosen, at[0], row, 0)
                put(mass, mass[0] + float_of(bits, 1), 0)
                with when(mass[0] > target[0]):
                    put(end, i32(0), 0)
            put(at, at[0] + 1, 0)

    def _search(self, border: Any, wanted: Any, probe: Callable[[list[Any]], None], sums: Any) -> None:
        """border = the largest bit pattern at or above it whose upper part amounts to `wanted`, if any does.

        `probe` puts into `sums` what is at or above each of some rising bounds. Sums of parts never exceed those of
        the whole, in floats too, as terms are never negative and the order is the same.
        """
        low, high, step, passed = (scratch(1, "int32") for _ in range(4))
        put(low, border[0], 0)
        put(high, i32(_ONE + 1), 0)
        with T.While(high[0] - low[0] > 1), block("probe"):
            put(step, T.max(T.shift_right(high[0] - low[0], i32(2)), 1), 0)
            probe([low[0] + step[0] * (i + 1) for i in range(PROBES)])
            put(passed, i32(0), 0)
            for i in range(PROBES):
                passes = T.And(sums[i] >= wanted[0], low[0] + step[0] * (i + 1) < high[0])
                put(passed, passed[0] + T.cast(passes, "int32"), 0)
            put(low, low[0] + step[0] * passed[0], 0)
            with when(passed[0] < PROBES):
                put(high, T.min(high[0], low[0] + step[0]), 0)
        put(border, low[0], 0)

    def _probe(self, row: Any, amount: Amount, sums: Any) -> Callable[[list[Any]], None]:
        return lambda bounds: self._reduce(row, bounds[0], [self._at_least(b, amount) for b in bounds], sums)

    def _count_maxima(self, row: Any, bounds: list[Any], sums: Any) -> None:
        for i in range(len(bounds)):
            put(sums, f32(0), i)
        with T.serial(self._blocks) as index:
            for i, bound in enumerate(bounds):
                put(sums, sums[i] + T.Select(self.maxima[row, index] >= bound, f32(1), f32(0)), i)

    def _one(self, bits: Any, weights: Any) -> Any:
        return full(f32(1), self.lanes)

    def _at_least(self, bound: Any, amount: Amount) -> Amount:
        zero = full(f32(0), self.lanes)
        return lambda bits, weights: T.Select(bits >= full(bound, self.lanes), amount(bits, weights), zero)

    def _equal(self, bound: Any) -> Amount:
        zero = full(f32(0), self.lanes)
        return lambda bits, weights: T.Select(bits == full(bound, self.lanes), self._one(bits, weights), zero)

    def _reduce(self, row: Any, least: Any, terms: Sequence[Amount], sums: Any) -> None:
        """sums[i] = the sum of terms[i], which add nothing for bits below `least`."""
        with block("reduce"):
            accumulators = self._accumulators(len(terms))
            with T.serial(self._blocks) as index, when(self.maxima[row, index] >= least):
                self._add_block(row, index, terms, accumulators)
            self._total(accumulators, len(terms), sums)

    def _reduce_block(self, row: Any, index: Any, terms: Sequence[Amount], sums: Any) -> None:
        accumulators = self._accumulators(len(terms))
        self._add_block(row, index, terms, accumulators)
        self._total(accumulators, len(terms), sums)

    def _accumulators(self, terms: int) -> Any:
        accumulators = scratch(terms * STREAMS * self.lanes)
        for i in range(terms * STREAMS):
            put(accumulators, full(f32(0), self.lanes), i * self.lanes, lanes=self.lanes)
        return accumulators

    def _add_block(self, row: Any, index: Any, terms: Sequence[Amount], accumulators: Any) -> None:
        lanes = self.lanes
        with T.serial(BLOCK // (STREAMS * lanes)) as i:
            for stream in range(STREAMS):
                bits = vec(self.work, row, index * BLOCK + (i * STREAMS + stream) * lanes, lanes=lanes)
                for number, term in enumerate(terms):
                    here = (number * STREAMS + stream) * lanes
                    added = vec(accumulators, here, lanes=lanes) + term(bits, float_of(bits, lanes))
                    put(accumulators, added, here, lanes=lanes)

    def _total(self, accumulators: Any, terms: int, sums: Any) -> None:
        lanes = self.lanes
        for number in range(terms):
            parts = [vec(accumulators, (number * STREAMS + s) * lanes, lanes=lanes) for s in range(STREAMS)]
            put(sums, across(parts, operator.add, lanes), number)


def _itself(bits: Any, weights: Any) -> Any:
    return weights
