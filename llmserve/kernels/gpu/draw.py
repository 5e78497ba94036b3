"""The draw on GPUs: one block per row, over weights whose chunks' maxima and masses are known.

As on the CPU (kernels/cpu/draw.py) nothing is sorted: the smallest weight that top_k or top_p keep is searched for over
bit patterns of float32, which order as the weights do. Values that are the same for all threads are computed by each of
them, and loops with barriers have a fixed number of iterations.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..tir import T, block, f32, i32, put, when
from .threads import barrier, held, local, reduce, reduce_all, shared

CHUNK = 1024  # ids whose maximum and mass are kept
PART = 32  # ids that are summed together before the draw looks at single ones
PROBES = 3  # bit patterns that one pass of a search tries
_PASSES = 18  # 2^30 patterns in quarters, and the rest of the divisions
_ONE = 0x3F800000  # bits of 1.0, the largest weight
_SLACK = 2.0**-10  # of a mass: more than sums of a row are off by
_LEAST = 2.0**-120

Amount = Callable[[Any], Any]
"""Bits of a weight → what it adds to a sum."""


def bits_of(value: Any) -> Any:
    """float32 as int32."""
    return T.reinterpret(value, dtype="int32")


def float_of(bits: Any) -> Any:
    """int32 as float32."""
    return T.reinterpret(bits, dtype="float32")


@dataclass(frozen=True)
class Drawing:
    """The draw of one row by a block of threads; tensors as in `sampling.sample`."""

    vocab: int
    threads: int
    row: Any
    thread: Any
    knobs: Any
    limits: Any
    work: Any
    maxima: Any
    masses: Any

    @property
    def _chunks(self) -> int:
        return -(-self.vocab // CHUNK)

    # Shared memory is allocated where it is first asked for: in the block that `draw` opens.

    @cached_property
    def _top(self) -> Any:
        """Of each chunk, the largest bits."""
        return shared(self._chunks, "int32")

    @cached_property
    def _mass(self) -> Any:
        return shared(self._chunks)

    @cached_property
    def _equal(self) -> Any:
        """Of each chunk, how many weights equal the border."""
        return shared(self._chunks)

    @cached_property
    def _values(self) -> list[Any]:
        return [shared(self.threads) for _ in range(PROBES)]

    def draw(self, chosen: Any) -> None:
        """chosen[row, 0] = a token that stays, by the inverse of the cumulative sum over those, in rising order.

        What stays: weights whose bits are above `border`, and of those that equal it the ones up to id `last`.
        """
        top_p, min_p, uniform = (held_float(self.knobs[self.row, i]) for i in (1, 2, 3))
        top_k = held(self.limits[self.row, 0])
        for buffer in (self._top, self._mass, self._equal, *self._values):
            assert buffer is not None
        border, last = local(1, "int32"), local(1, "int32")
        put(border, T.max(bits_of(min_p), i32(1)), 0)  # zeros never stay
        put(last, i32(self.vocab), 0)
        with T.serial(-(-self._chunks // self.threads)) as i:
            index = i * self.threads + self.thread
            with T.If(index < self._chunks), T.Then():
                put(self._top, self.maxima[self.row, index], index)
                put(self._mass, self.masses[self.row, index], index)
        barrier()
        knobs, limits = self.knobs, self.limits
        filters = T.Or(T.Or(knobs[self.row, 2] > f32(0), limits[self.row, 0] > 0), knobs[self.row, 1] < f32(1))
        with when(filters), block("filter"):
            self._filter(top_k, top_p, min_p, border, last)
        self._pick(uniform, border[0], last[0], chosen)

    def _filter(self, top_k: Any, top_p: Any, min_p: Any, border: Any, last: Any) -> None:
        """Sets `border` and `last`, and the chunks' masses to those of what stays."""
        base, wanted, ties, before, sums = local(1), local(1), local(1, "int32"), local(2, "int32"), local(PROBES)
        put(ties, i32(self.vocab), 0)
        put(base, self._total(), 0)
        # Conditions are read where they were given: barriers stand under them.
        with when(self.knobs[self.row, 2] > f32(0)), block("min_p"):
            self._reduce(border[0], [_at_least(border[0], float_of)], sums)
            put(base, sums[0], 0)
        with when(self.limits[self.row, 0] > 0), block("top_k"):
            put(wanted, T.cast(top_k, "float32"), 0)
            with when(top_k <= self._chunks):  # as many chunks have one each that is no less than this
                self._search(border, wanted, lambda bounds: self._count_tops(bounds, sums), sums)
            self._search(border, wanted, self._probe(_one, sums), sums)
            value, above = held_float(float_of(border[0])), held(border[0] + 1)
            terms = [_at_least(above, _one), _at_least(above, float_of), _equals(border[0])]
            self._reduce(border[0], terms, sums)
            # Fewer than k were there: the border is where it was, and all that equal it stay.
            put(ties, T.max(top_k - T.cast(sums[0], "int32"), 0), 0)
            put(base, sums[1] + value * T.min(sums[2], T.cast(ties[0], "float32")), 0)
        with when(self.knobs[self.row, 1] < f32(1)), block("top_p"):
            put(wanted, top_p * base[0], 0)
            put(before, border[0], 0)
            put(before, ties[0], 1)
            # What is below this comes to less than what top_p leaves out.
            start = T.max(f32(1 - _SLACK) - top_p, f32(0)) * base[0] * f32(1 / self.vocab)
            put(border, T.max(border[0], bits_of(start)), 0)
            self._search(border, wanted, self._probe(float_of, sums), sums)
            self._reduce(border[0], [_at_least(border[0] + 1, float_of)], sums)
            missing = (wanted[0] - sums[0]) / T.max(float_of(border[0]), f32(_LEAST))
            put(ties, T.max(T.cast(T.ceil(T.min(missing, f32(2.0**24))), "int32"), 1), 0)
            with T.If(border[0] == before[0]), T.Then():
                put(ties, T.min(ties[0], before[1]), 0)
        self._settle(border[0], ties[0], last)

    def _settle(self, border: Any, ties: Any, last: Any) -> None:
        """The masses of what stays, and the id of the last of `ties` weights that equal the border."""
        together = self.threads // PART  # chunks, with PART threads each
        lane = self.thread % PART
        above, equal = local(1), local(1)
        with T.serial(-(-self._chunks // together)) as i, block("mass"):
            index = i * together + self.thread // PART
            put(above, f32(0), 0)
            put(equal, f32(0), 0)
            has_some = T.And(index < self._chunks, self._top[T.min(index, self._chunks - 1)] >= border)
            with T.If(has_some), T.Then(), T.serial(CHUNK // PART) as j:
                bits = held(self.work[self.row, index * CHUNK + j * PART + lane])
                put(above, above[0] + _at_least(border + 1, float_of)(bits), 0)
                put(equal, equal[0] + _equals(border)(bits), 0)
            barrier()
            put(self._values[0], above[0], self.thread)
            put(self._values[1], equal[0], self.thread)
            reduce_all(self._values[:2], PART, self.thread, operator.add)
            with T.If(T.And(lane == 0, index < self._chunks)), T.Then():
                put(self._mass, self._values[0][self.thread], index)
                put(self._equal, self._values[1][self.thread], index)
        barrier()
        seen, at, here = local(1, "int32"), local(1, "int32"), local(1, "int32")
        put(seen, i32(0), 0)
        with T.serial(self._chunks) as index:
            put(here, T.cast(self._equal[index], "int32"), 0)
            with T.If(self.thread == 0), T.Then():
                kept = T.cast(T.min(ties - seen[0], here[0]), "float32")
                put(self._mass, self._mass[index] + float_of(border) * kept, index)
            with T.If(T.And(last[0] == self.vocab, seen[0] + here[0] > ties)), T.Then():
                put(at, index * CHUNK - 1, 0)
                put(last, ties - seen[0], 0)  # as many are still to come
                with T.While(last[0] > 0):
                    put(at, at[0] + 1, 0)
                    with T.If(self.work[self.row, at[0]] == border), T.Then():
                        put(last, last[0] - 1, 0)
                put(last, at[0], 0)
            put(seen, T.min(seen[0] + here[0], ties), 0)
        barrier()

    def _pick(self, uniform: Any, border: Any, last: Any, chosen: Any) -> None:
        target, mass = local(1), local(1)
        put(target, uniform * self._total(), 0)
        put(mass, f32(0), 0)
        chunk = self._crossing(self._mass, self._chunks, target, mass)
        parts, values = shared(CHUNK // PART), self._values[0]
        per_pass = self.threads // PART
        with T.serial(CHUNK // self.threads) as i, block("parts"):
            at = chunk * CHUNK + i * self.threads + self.thread
            bits = held(self.work[self.row, at])
            barrier()
            put(values, T.if_then_else(_stays(bits, at, border, last), float_of(bits), f32(0)), self.thread)
            reduce(values, PART, self.thread, operator.add)
            with T.If(self.thread % PART == 0), T.Then():
                put(parts, values[self.thread], i * per_pass + self.thread // PART)
        barrier()
        part = self._crossing(parts, CHUNK // PART, target, mass)
        token, found = local(1, "int32"), local(1, "int32")
        put(found, i32(0), 0)
        put(token, i32(0), 0)
        with T.serial(PART) as i:
            at = chunk * CHUNK + part * PART + i
            bits = held(self.work[self.row, at])
            with T.If(T.And(found[0] == 0, _stays(bits, at, border, last))), T.Then():
                put(token, at, 0)  # the last that stays, if rounding ran past the end
                put(mass, mass[0] + float_of(bits), 0)
                put(found, T.if_then_else(mass[0] > target[0], i32(1), i32(0)), 0)
        with T.If(self.thread == 0), T.Then():
            put(chosen, token[0], self.row, 0)

    def _crossing(self, masses: Any, count: int, target: Any, mass: Any) -> Any:
        """The first of some masses whose addition to `mass` exceeds the target; `mass` is that of those before it.
        Where rounding lets none do that, the last that is not zero, and a target out of reach."""
        at, found = local(1, "int32"), local(1, "int32")
        put(at, i32(0), 0)
        put(found, i32(0), 0)
        with T.serial(count) as i, T.If(T.And(found[0] == 0, masses[i] > f32(0))), T.Then():
            put(at, i, 0)
            with T.If(mass[0] + masses[i] > target[0]):
                with T.Then():
                    put(found, i32(1), 0)
                with T.Else():
                    put(mass, mass[0] + masses[i], 0)
        with T.If(found[0] == 0), T.Then():
            put(target, f32(1e30), 0)
        return at[0]

    def _total(self) -> Any:
        total = local(1)
        put(total, f32(0), 0)
        with T.serial(self._chunks) as i:
            put(total, total[0] + self._mass[i], 0)
        return total[0]

    def _search(self, border: Any, wanted: Any, probe: Callable[[list[Any]], None], sums: Any) -> None:
        """border = the largest bit pattern at or above it whose upper part amounts to `wanted`, if any does.

        `probe` puts into `sums` what is at or above each of some rising bounds. Sums of parts never exceed those of
        the whole, in floats too, as terms are never negative and the order is the same.
        """
        high, step, passed = (local(1, "int32") for _ in range(3))
        put(high, i32(_ONE + 1), 0)
        with T.serial(_PASSES), block("pass"):
            put(step, T.max(T.shift_right(high[0] - border[0], i32(2)), 1), 0)
            # Once they are neighbours, bounds are above all weights, which costs nothing.
            open_ended = high[0] - border[0] > 1
            bounds = [border[0] + step[0] * (i + 1) for i in range(PROBES)]
            probe([T.if_then_else(open_ended, bound, i32(_ONE + 1)) for bound in bounds])
            put(passed, i32(0), 0)
            for i, bound in enumerate(bounds):
                passes = T.And(sums[i] >= wanted[0], bound < high[0])
                put(passed, passed[0] + T.if_then_else(passes, i32(1), i32(0)), 0)
            put(border, border[0] + step[0] * passed[0], 0)
            with T.If(passed[0] < PROBES), T.Then():
                put(high, T.min(high[0], border[0] + step[0]), 0)

    def _probe(self, amount: Amount, sums: Any) -> Callable[[list[Any]], None]:
        def probe(bounds: list[Any]) -> None:
            held_bounds = [held(bound) for bound in bounds]
            self._reduce(held_bounds[0], [_at_least(bound, amount) for bound in held_bounds], sums)

        return probe

    def _count_tops(self, bounds: list[Any], sums: Any) -> None:
        held_bounds = [held(bound) for bound in bounds]
        for i in range(len(bounds)):
            put(sums, f32(0), i)
        with T.serial(self._chunks) as index:
            for i, bound in enumerate(held_bounds):
                put(sums, sums[i] + T.if_then_else(self._top[index] >= bound, f32(1), f32(0)), i)

    def _reduce(self, least: Any, terms: Sequence[Amount], sums: Any) -> None:
        """sums[i] = the sum of terms[i], which add nothing for bits below `least`."""
        with block("reduce"):
            mine = local(len(terms))
            for i in range(len(terms)):
                put(mine, f32(0), i)
            per_thread = T.serial(CHUNK // self.threads)
            with T.serial(self._chunks) as index, T.If(self._top[index] >= least), T.Then(), per_thread as j:
                bits = held(self.work[self.row, index * CHUNK + j * self.threads + self.thread])
                for i, term in enumerate(terms):
                    put(mine, mine[i] + term(bits), i)
            barrier()
            for i in range(len(terms)):
                put(self._values[i], mine[i], self.thread)
            reduce_all(self._values[: len(terms)], self.threads, self.thread, operator.add)
            for i in range(len(terms)):
                put(sums, self._values[i][0], i)


def held_float(value: Any) -> Any:
    """`value` (float32) computed once and kept."""
    kept = local(1)
    put(kept, value, 0)
    return kept[0]


def _one(bits: Any) -> Any:
    return f32(1)


def _at_least(bound: Any, amount: Amount) -> Amount:
    return lambda bits: T.if_then_else(bits >= bound, amount(bits), f32(0))


def _equals(bound: Any) -> Amount:
    return lambda bits: T.if_then_else(bits == bound, f32(1), f32(0))


def _stays(bits: Any, at: Any, border: Any, last: Any) -> Any:
    return T.Or(bits > border, T.And(bits == border, at <= last))
