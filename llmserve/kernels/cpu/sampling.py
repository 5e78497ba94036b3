"""Token sampling on CPUs: adjustments, grammar masks, argmax, and draws by temperature, min_p, top_k and top_p.

A row is processed in blocks of ids, whose maxima and masses are kept: all threads share even a single row, and later
passes read few of its blocks. The draw itself is in draw.py. Oracle: engine/run/choices.py.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from tvm.tirx import PrimFunc

from ..tir import T, block, build, each_row, f32, full, i32, put, scratch, sized, vec, when
from .draw import BLOCK, Drawing, bits_of, float_of
from .isa import Isa
from .vector_math import across, exp2

GROUP = 16  # blocks that a thread takes at once
STREAMS = 4  # independent accumulators, which hide the adders' latency
_MAGNITUDE = 0x7FFFFFFF  # all bits of a float but its sign
_INFINITE = 0x7F800000
_BANNED = _INFINITE - 2**31  # bits of minus infinity
_BAN = 3e38  # what is subtracted above this is a ban
_TINY = 2.0**-120  # weights below are zero: exp2 does not go much further down

Bits = Callable[[Any, int], Any]
"""(index in a row, lanes) → the bits of that many of its values, int32."""


def scratch_shapes(rows: Any, vocab: int) -> tuple[tuple[tuple[Any, Any], str], ...]:
    """(shape, dtype) of what `sample` works in: a row's values, and the maxima and masses of its blocks."""
    blocks = -(-vocab // BLOCK)
    return ((rows, blocks * BLOCK), "int32"), ((rows, blocks), "int32"), ((rows, blocks), "float32")


def sample(name: str, vocab: int, isa: Isa) -> PrimFunc:
    """One token per row; arguments as `kernels.base.ChoiceArguments` has them, then the output, then scratch.

    logits float32 [R, vocab] · knobs float32 [R, 4] · limits int32 [R, 4] · ids int32 [A] · amounts float32 [A, 3] ·
    masks int32 [K, words] · chosen int32 [R, 2] · work, maxima, masses as in `scratch_shapes`.
    """
    lanes = isa.lanes
    blocks = -(-vocab // BLOCK)
    groups = -(-blocks // GROUP)

    def body() -> None:
        rows, num_adjustments, num_masks = T.int64(), T.int64(), T.int64()
        logits = sized("logits", (rows, vocab), "float32")
        knobs = sized("knobs", (rows, 4), "float32")
        limits = sized("limits", (rows, 4), "int32")
        ids = sized("ids", (num_adjustments,), "int32")
        amounts = sized("amounts", (num_adjustments, 3), "float32")
        masks = sized("masks", (num_masks, -(-vocab // 32)), "int32")
        chosen = sized("chosen", (rows, 2), "int32")
        names = ("work", "maxima", "masses")
        work, maxima, masses = (sized(name, *its) for name, its in zip(names, scratch_shapes(rows, vocab), strict=True))

        def is_adjusted(row: Any) -> Any:
            return T.Or(limits[row, 1] >= 0, limits[row, 3] > limits[row, 2])

        def draws(row: Any) -> Any:
            return T.And(knobs[row, 0] > f32(0), T.bitwise_and(chosen[row, 1], i32(_MAGNITUDE)) < _INFINITE)

        def from_source(row: Any, then: Callable[[Bits], None]) -> None:
            """`then` with the row's logits, from where they are."""
            with T.If(is_adjusted(row)):
                with T.Then(), block("adjusted"):
                    then(lambda at, lanes: vec(work, row, at, lanes=lanes))
                with T.Else(), block("plain"):
                    then(lambda at, lanes: bits_of(vec(logits, row, at, lanes=lanes), lanes))

        def each_block(visit: Callable[[Any, Any, Any], None], wanted: Callable[[Any], Any]) -> None:
            """`visit(row, block, ids in it)` for all blocks of the rows that are wanted, by all threads."""

            def go(task: Any) -> None:
                row, first = task // groups, task % groups * GROUP
                with when(wanted(row)), T.serial(T.min(blocks - first, GROUP)) as i:
                    visit(row, first + i, T.min(vocab - (first + i) * BLOCK, BLOCK))

            each_row(rows * groups, go)

        def copy(row: Any, index: Any, count: Any) -> None:
            """A block of the row into `work`, what its mask rules out banned."""
            mask = limits[row, 1]

            def move(at: Any, lanes: int, masked: bool) -> None:
                value = bits_of(vec(logits, row, at, lanes=lanes), lanes)
                if masked:
                    shift = full(T.cast(at % 32, "int32"), lanes)
                    shift = shift + T.ramp(i32(0), i32(1), lanes) if lanes > 1 else shift
                    bit = T.bitwise_and(T.shift_right(full(masks[mask, at // 32], lanes), shift), full(i32(1), lanes))
                    value = T.Select(bit == full(i32(1), lanes), value, full(i32(_BANNED), lanes))
                put(work, value, row, at, lanes=lanes)

            def all_of(masked: bool) -> None:
                with T.serial(count // lanes) as i:
                    move(index * BLOCK + i * lanes, lanes, masked)
                with T.serial(count % lanes) as i:
                    move(index * BLOCK + count // lanes * lanes + i, 1, masked)

            with T.If(mask >= 0):
                with T.Then():
                    all_of(masked=True)
                with T.Else():
                    all_of(masked=False)

        def adjust(row: Any) -> None:
            value = scratch(1)
            with T.serial(limits[row, 3] - limits[row, 2]) as i:
                entry = limits[row, 2] + i
                at, penalty = ids[entry], amounts[entry, 1]
                put(value, float_of(work[row, at], 1) + amounts[entry, 0], 0)
                put(value, T.Select(value[0] > f32(0), value[0] / penalty, value[0] * penalty), 0)
                put(value, value[0] - amounts[entry, 2], 0)
                put(work, T.Select(amounts[entry, 2] > f32(_BAN), i32(_BANNED), bits_of(value[0], 1)), row, at)

        def find_highest(row: Any, index: Any, count: Any) -> None:
            from_source(row, lambda bits: highest(row, index, count, bits))

        def highest(row: Any, index: Any, count: Any, bits: Bits) -> None:
            """maxima[row, index] = the largest key of a block."""
            best = scratch(STREAMS * lanes, "int32")
            put_all(best, i32(-_MAGNITUDE))

            def take(at: Any, here: Any, lanes: int) -> None:
                key = _key(bits(index * BLOCK + at, lanes), lanes)
                put(best, T.max(vec(best, here, lanes=lanes), key), here, lanes=lanes)

            in_streams(count, take)
            put(maxima, across(parts(best), T.max, lanes, "int32"), row, index)

        def weigh(row: Any, index: Any, count: Any) -> None:
            from_source(row, lambda bits: weights(row, index, count, bits))

        def weights(row: Any, index: Any, count: Any, bits: Bits) -> None:
            """Logits become weights, 1 at the peak; maxima and masses of the block are those of the weights' bits."""
            scale = knobs[row, 0] * f32(math.log2(math.e))
            peak = float_of(chosen[row, 1], 1)
            total, best = scratch(STREAMS * lanes), scratch(STREAMS * lanes, "int32")
            put_all(total, f32(0))
            put_all(best, i32(0))

            def take(at: Any, here: Any, lanes: int) -> None:
                power = (float_of(bits(index * BLOCK + at, lanes), lanes) - full(peak, lanes)) * full(scale, lanes)
                value = exp2(power, lanes)
                value = T.Select(value < full(f32(_TINY), lanes), full(f32(0), lanes), value)
                put(work, bits_of(value, lanes), row, index * BLOCK + at, lanes=lanes)
                weight = vec(work, row, index * BLOCK + at, lanes=lanes)
                put(total, vec(total, here, lanes=lanes) + float_of(weight, lanes), here, lanes=lanes)
                put(best, T.max(vec(best, here, lanes=lanes), weight), here, lanes=lanes)

            in_streams(count, take)
            with T.serial(BLOCK - count) as i:
                put(work, i32(0), row, index * BLOCK + count + i)
            put(masses, across(parts(total), operator.add, lanes), row, index)
            put(maxima, across(parts(best), T.max, lanes, "int32"), row, index)

        def put_all(buffer: Any, value: Any) -> None:
            for stream in range(STREAMS):
                put(buffer, full(value, lanes), stream * lanes, lanes=lanes)

        def parts(buffer: Any) -> list[Any]:
            return [vec(buffer, stream * lanes, lanes=lanes) for stream in range(STREAMS)]

        def in_streams(count: Any, take: Callable[[Any, Any, int], None]) -> None:
            """`take(index, lane of the accumulator, lanes)` for all of the first `count` ids of a block."""
            together = STREAMS * lanes
            with T.serial(count // together) as i:
                for stream in range(STREAMS):
                    take(i * together + stream * lanes, stream * lanes, lanes)
            with T.serial(count % together) as i:
                take(count // together * together + i, i, 1)

        def choose_best(row: Any) -> None:
            """chosen[row] = the first of the row's largest, and its bits."""
            top, at = scratch(1, "int32"), scratch(1, "int32")
            put(top, i32(-_MAGNITUDE), 0)
            with T.serial(blocks) as i:
                put(top, T.max(top[0], maxima[row, i]), 0)
            put(at, i32(0), 0)
            with T.While(maxima[row, at[0]] != top[0]):
                put(at, at[0] + 1, 0)
            put(at, at[0] * BLOCK, 0)

            def find(bits: Bits) -> None:
                with T.While(_key(bits(at[0], 1), 1) != top[0]):
                    put(at, at[0] + 1, 0)

            from_source(row, find)
            put(chosen, at[0], row, 0)
            put(chosen, _from_key(top[0]), row, 1)

        def each_wanted(wanted: Callable[[Any], Any], work: Callable[[Any], None]) -> None:
            def go(row: Any) -> None:
                with when(wanted(row)):
                    work(row)

            each_row(rows, go)

        with block("sample"):
            some = scratch(2, "int32")  # whether a row is adjusted, and whether one draws
            put(some, i32(0), 0)
            put(some, i32(0), 1)
            with T.serial(rows) as row, when(is_adjusted(row)):
                put(some, i32(1), 0)
            with when(some[0] == 1):
                each_block(copy, is_adjusted)
                each_wanted(is_adjusted, adjust)
            each_block(find_highest, lambda row: True)
            with T.serial(rows) as row, block("best"):
                choose_best(row)
                with when(draws(row)):
                    put(some, i32(1), 1)
            with when(some[1] == 1):
                each_block(weigh, draws)
                each_wanted(draws, Drawing(vocab, lanes, knobs, limits, chosen, work, maxima, masses).draw)

    return build(name, body)


def _key(bits: Any, lanes: int) -> Any:
    """int32 that order as the floats of these bits do, zeros equal, and any NaN above all."""
    magnitude = T.bitwise_and(bits, full(i32(_MAGNITUDE), lanes))
    key = T.Select(bits < full(i32(0), lanes), full(i32(0), lanes) - magnitude, bits)
    return T.Select(magnitude > full(i32(_INFINITE), lanes), full(i32(_MAGNITUDE), lanes), key)


def _from_key(key: Any) -> Any:
    """The bits of a float of this key."""
    return T.Select(key < 0, T.bitwise_or(0 - key, i32(-(2**31))), key)
