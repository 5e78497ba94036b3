"""Drawing tokens on CPUs: temperature, min_p, top_k and top_p without a sort, a row of logits per worker.

Weights order as their float32 bits do, so the smallest weight that top_k or top_p keeps is found by bisection over bit
patterns, each probe one vectorised pass over the row. Of equal weights the lower ids are kept. Oracle: engine.sampler.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm.tirx import PrimFunc

from ..tir import T, block, build, f32, full, i32, put, scratch, sized, vec, when
from .isa import Isa
from .vector_math import exp2

BLOCK = 512  # ids that are summed together before the draw looks at single ones
STREAMS = 4  # independent accumulators, which hide the adders' latency
_ONE = 0x3F800000  # bits of 1.0, the largest weight
_TINY = 2.0**-120  # weights below are zero: exp2 does not go much further down


def sample(name: str, vocab: int, isa: Isa) -> PrimFunc:
    """One token per row, drawn from softmax(logits * inverse_temperature) after min_p, top_k and top_p, in this order.

    logits float32 [R, vocab], finite at their largest · inverse_temperature, top_p, min_p, uniform float32 [R] ·
    top_k int32 [R], 0 for all · tokens int32 [R], the output. `uniform` in [0, 1) picks by the inverse of the
    cumulative sum over the ids that are kept, in rising order.
    """
    lanes = isa.lanes
    padded = -(-vocab // BLOCK) * BLOCK

    def body() -> None:
        rows = T.int64()
        logits = sized("logits", (rows, vocab), "float32")
        inverse_temperature = sized("inverse_temperature", (rows,), "float32")
        top_k = sized("top_k", (rows,), "int32")
        top_p = sized("top_p", (rows,), "float32")
        min_p = sized("min_p", (rows,), "float32")
        uniform = sized("uniform", (rows,), "float32")
        tokens = sized("tokens", (rows,), "int32")

        with T.parallel(rows) as row, block("sample"):
            weight = scratch(padded)
            peak, acc = scratch(1), scratch(STREAMS * lanes)
            # [0] what a pass summed, [1] weight of all, [2] wanted
            total = scratch(3)
            low, high, ties, border = scratch(1, "int32"), scratch(1, "int32"), scratch(1, "int32"), scratch(1, "int32")

            def reduce_row(term: Callable[[Any], Any], start: Any = 0, count: Any = padded) -> None:
                """total[0] = sum of term(i, lanes at i) over the row's weights, always in the same order."""
                for stream in range(STREAMS):
                    put(acc, full(f32(0), lanes), stream * lanes, lanes=lanes)
                with T.serial(count // (STREAMS * lanes)) as i:
                    for stream in range(STREAMS):
                        value = vec(weight, start + (i * STREAMS + stream) * lanes, lanes=lanes)
                        old = vec(acc, stream * lanes, lanes=lanes)
                        put(acc, old + term(value), stream * lanes, lanes=lanes)
                result: Any = acc[0]
                for lane in range(1, STREAMS * lanes):
                    result = result + acc[lane]
                put(total, result, 0)

            def bits(value: Any) -> Any:
                return T.reinterpret(value, dtype=f"int32x{lanes}")

            def at_least(bound: Any, amount: Callable[[Any], Any]) -> Callable[[Any], Any]:
                zero = full(f32(0), lanes)
                return lambda value: T.Select(bits(value) >= full(bound, lanes), amount(value), zero)

            def one(value: Any) -> Any:
                return full(f32(1), lanes)

            def itself(value: Any) -> Any:
                return value

            def lower_border(amount: Callable[[Any], Any]) -> None:
                """border = the largest bit pattern at or above it whose upper part amounts to total[2], if any does."""
                put(low, border[0], 0)
                put(high, i32(_ONE + 1), 0)
                with T.While(high[0] - low[0] > 1):
                    middle = low[0] + T.shift_right(high[0] - low[0], i32(1))
                    reduce_row(at_least(middle, amount))
                    with T.If(total[0] >= total[2]):
                        with T.Then():
                            put(low, low[0] + T.shift_right(high[0] - low[0], i32(1)), 0)
                        with T.Else():
                            put(high, low[0] + T.shift_right(high[0] - low[0], i32(1)), 0)
                put(border, low[0], 0)

            def border_value() -> Any:
                return T.reinterpret(border[0], dtype="float32")

            # Weights: 1 at the peak.
            put(peak, logits[row, 0], 0)
            with T.serial(vocab) as i:
                put(peak, T.max(peak[0], logits[row, i]), 0)
            scale = inverse_temperature[row] * f32(math.log2(math.e))
            whole = vocab // lanes * lanes
            with T.serial(whole // lanes) as i:
                power = (vec(logits, row, i * lanes, lanes=lanes) - full(peak[0], lanes)) * full(scale, lanes)
                value = exp2(power, lanes)
                put(
                    weight,
                    T.Select(value < full(f32(_TINY), lanes), full(f32(0), lanes), value),
                    i * lanes,
                    lanes=lanes,
                )
            for i in range(whole, vocab):
                value = exp2((logits[row, i] - peak[0]) * scale, 1)
                put(weight, T.Select(value < f32(_TINY), f32(0), value), i)
            for i in range(vocab, padded):
                put(weight, f32(0), i)

            # What stays: weights whose bits are above `border`, and the first `ties` of those that equal it.
            reduce_row(itself)
            put(total, total[0], 1)
            put(border, T.max(T.reinterpret(min_p[row], dtype="int32"), i32(1)), 0)  # zeros never stay
            put(ties, i32(vocab), 0)
            with when(min_p[row] > f32(0)):
                reduce_row(at_least(border[0], itself))
                put(total, total[0], 1)
            with when(top_k[row] > 0):
                put(total, T.cast(top_k[row], "float32"), 2)
                lower_border(one)
                reduce_row(at_least(border[0] + 1, one))
                put(ties, T.min(ties[0], T.max(top_k[row] - T.cast(total[0], "int32"), 0)), 0)
                # Fewer than k were there: the border is where it was, and all that equal it stay.
                reduce_row(at_least(border[0] + 1, itself))
                put(total, total[0], 1)
                reduce_row(lambda v: T.Select(bits(v) == full(border[0], lanes), one(v), full(f32(0), lanes)))
                put(total, total[1] + border_value() * T.min(total[0], T.cast(ties[0], "float32")), 1)
            with when(top_p[row] < f32(1)):
                put(total, top_p[row] * total[1], 2)
                remembered = scratch(2, "int32")
                put(remembered, border[0], 0)
                put(remembered, ties[0], 1)
                lower_border(itself)
                reduce_row(at_least(border[0] + 1, itself))
                missing = (total[2] - total[0]) / T.max(border_value(), f32(_TINY))
                wanted = T.max(T.cast(T.ceil(T.min(missing, f32(2.0**24))), "int32"), 1)
                put(ties, T.Select(border[0] == remembered[0], T.min(wanted, remembered[1]), wanted), 0)

            # Draw: whole blocks first, then the ids of one block.
            position, tied = scratch(1, "int32"), scratch(1, "int32")
            mass, target = scratch(2), scratch(1)
            put(tied, i32(0), 0)
            put(mass, f32(0), 0)

            def block_mass(index: Any) -> None:
                """mass[1] = what block `index` adds; low[0] = ties counted after it."""
                start = index * BLOCK
                reduce_row(
                    lambda v: T.Select(bits(v) == full(border[0], lanes), one(v), full(f32(0), lanes)), start, BLOCK
                )
                put(low, T.min(tied[0] + T.cast(total[0], "int32"), ties[0]), 0)
                reduce_row(at_least(border[0] + 1, itself), start, BLOCK)
                put(mass, total[0] + border_value() * T.cast(low[0] - tied[0], "float32"), 1)

            with T.serial(padded // BLOCK) as i:
                block_mass(i)
                put(mass, mass[0] + mass[1], 0)
                put(tied, low[0], 0)
            put(target, uniform[row] * mass[0], 0)
            put(tied, i32(0), 0)
            put(mass, f32(0), 0)
            put(position, i32(0), 0)
            put(high, i32(0), 0)  # 1 once the block is found
            with T.While(T.And(high[0] == 0, position[0] < padded // BLOCK)):
                block_mass(position[0])
                with T.If(mass[0] + mass[1] > target[0]):
                    with T.Then():
                        put(high, i32(1), 0)
                    with T.Else():
                        put(mass, mass[0] + mass[1], 0)
                        put(tied, low[0], 0)
                        put(position, position[0] + 1, 0)
            # Within the block; `chosen` ends as the last id that stays if rounding ran past the end.
            chosen = scratch(1, "int32")
            put(chosen, i32(0), 0)
            put(low, T.Select(high[0] == 1, position[0] * BLOCK, i32(0)), 0)
            put(high, T.Select(high[0] == 1, T.min(position[0] * BLOCK + BLOCK, i32(vocab)), i32(vocab)), 0)
            with when(position[0] == padded // BLOCK):
                put(mass, f32(-1e30), 0)  # nothing crosses the target: take the last that stays
                put(tied, i32(0), 0)
            with T.While(low[0] < high[0]):
                pattern = T.reinterpret(weight[low[0]], dtype="int32")
                stays = T.Or(pattern > border[0], T.And(pattern == border[0], tied[0] < ties[0]))
                with when(stays):
                    put(chosen, low[0], 0)
                    put(mass, mass[0] + weight[low[0]], 0)
                    with when(pattern == border[0]):
                        put(tied, tied[0] + 1, 0)
                    with when(mass[0] > target[0]):
                        put(high, low[0], 0)
                put(low, low[0] + 1, 0)
            put(tokens, chosen[0], row)

    return build(name, body)
