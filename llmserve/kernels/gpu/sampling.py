"""Token sampling on GPUs: a few kernels, one after the other, each of which reads what the one before wrote.

Rows are cut into chunks of ids. Masks, maxima and weights are computed by one block per chunk; then one block per row
draws (draw.py). Oracle: engine/run/choices.py.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from tvm.tirx import PrimFunc

from ...platforms import Gpu
from ..tir import T, block, build, f32, i32, put, sized, when
from .draw import CHUNK, Drawing, bits_of, float_of
from .threads import barrier, ceil_div, grid, held, local, reduce, shared

_MAGNITUDE = 0x7FFFFFFF  # all bits of a float but its sign
_INFINITE = 0x7F800000
_BANNED = _INFINITE - 2**31  # bits of minus infinity
_BAN = 3e38  # what is subtracted above this is a ban
_TINY = 2.0**-120  # weights below are zero, as numbers that small are on some GPUs


def scratch_shapes(rows: Any, vocab: int) -> tuple[tuple[tuple[Any, Any], str], ...]:
    """(shape, dtype) of what `sample` works in: a row's values, the maxima and masses of its chunks, and the first of
    its largest with its bits."""
    chunks = -(-vocab // CHUNK)
    return (
        *(((rows, chunks * CHUNK), "int32"), ((rows, chunks), "int32")),
        *(((rows, chunks), "float32"), ((rows, 2), "int32")),
    )


def sample(name: str, vocab: int, gpu: Gpu) -> PrimFunc:
    """One token per row; arguments as `kernels.base.ChoiceArguments` has them, then the output, then scratch.

    logits float32 [R, vocab] · knobs float32 [R, 4] · limits int32 [R, 4] · ids int32 [A] · amounts float32 [A, 3] ·
    masks int32 [K, words] · chosen int32 [R, 2] · work, maxima, masses, best as in `scratch_shapes`.
    Infinities and NaNs are looked at as bits only: not every GPU computes with them.
    """
    threads = min(256, gpu.threads)
    chunks = -(-vocab // CHUNK)

    def body() -> None:
        rows, num_adjustments, num_masks = T.int64(), T.int64(), T.int64()
        logits = sized("logits", (rows, vocab), "float32")
        knobs = sized("knobs", (rows, 4), "float32")
        limits = sized("limits", (rows, 4), "int32")
        ids = sized("ids", (num_adjustments,), "int32")
        amounts = sized("amounts", (num_adjustments, 3), "float32")
        masks = sized("masks", (num_masks, -(-vocab // 32)), "int32")
        chosen = sized("chosen", (rows, 2), "int32")
        names = ("work", "maxima", "masses", "best")
        work, maxima, masses, best = (
            sized(name, *its) for name, its in zip(names, scratch_shapes(rows, vocab), strict=True)
        )

        def is_adjusted(row: Any) -> Any:
            return T.Or(limits[row, 1] >= 0, limits[row, 3] > limits[row, 2])

        def draws(row: Any) -> Any:
            return T.And(knobs[row, 0] > f32(0), T.bitwise_and(best[row, 1], i32(_MAGNITUDE)) < _INFINITE)

        def from_source(row: Any, then: Callable[[Callable[[Any], Any]], None]) -> None:
            """`then` with index → bits of the row's logits, from where they are."""
            with T.If(is_adjusted(row)):
                with T.Then(), block("adjusted"):
                    then(lambda at: work[row, at])
                with T.Else(), block("plain"):
                    then(lambda at: bits_of(logits[row, at]))

        def each_id(chunk: Any, thread: Any, visit: Callable[[Any], None], padding: bool = False) -> None:
            """`visit(id)` for this thread's ids of a chunk, those past the end as well if `padding`."""
            with T.serial(CHUNK // threads) as i:
                at = chunk * CHUNK + i * threads + thread
                with when(padding or vocab % CHUNK == 0 or at < vocab):
                    visit(at)

        def reduced(value: Any, values: Any, thread: Any, combine: Callable[[Any, Any], Any]) -> Any:
            """All threads' values combined, for all of them."""
            barrier()
            put(values, value, thread)
            reduce(values, threads, thread, combine)
            return values[0]

        # Entry 0 of these is nobody's.
        with T.If(T.Or(num_adjustments > 1, num_masks > 1)), T.Then():
            with grid(threads, rows, chunks) as (row, chunk, thread):
                mask = held(limits[row, 1])

                def copy(at: Any) -> None:
                    bits = bits_of(logits[row, at])
                    word = T.shift_right(masks[T.max(mask, 0), at // 32], at % 32)
                    allowed = T.Or(mask < 0, T.bitwise_and(word, i32(1)) == 1)
                    put(work, T.if_then_else(allowed, bits, i32(_BANNED)), row, at)

                with T.If(is_adjusted(row)), T.Then():
                    each_id(chunk, thread, copy)

            with grid(threads, rows) as (row, thread):
                first, count = held(limits[row, 2]), held(limits[row, 3] - limits[row, 2])
                with T.serial(ceil_div(count, threads)) as i:
                    entry = first + i * threads + thread
                    with T.If(i * threads + thread < count), T.Then():
                        value, at = local(1), held(ids[entry])
                        penalty, less = amounts[entry, 1], amounts[entry, 2]
                        bits = work[row, at]
                        put(value, float_of(bits) + amounts[entry, 0], 0)
                        put(value, T.if_then_else(value[0] > f32(0), value[0] / penalty, value[0] * penalty), 0)
                        is_banned = T.Or(bits == _BANNED, less > f32(_BAN))
                        put(work, T.if_then_else(is_banned, i32(_BANNED), bits_of(value[0] - less)), row, at)

        with grid(threads, rows, chunks) as (row, chunk, thread):
            top, values = local(1, "int32"), shared(threads, "int32")
            put(top, i32(-_MAGNITUDE), 0)

            def raise_top(bits: Callable[[Any], Any]) -> None:
                each_id(chunk, thread, lambda at: put(top, T.max(top[0], _key(bits(at))), 0))

            from_source(row, raise_top)
            highest = reduced(top[0], values, thread, T.max)
            with T.If(thread == 0), T.Then():
                put(maxima, highest, row, chunk)

        with grid(threads, rows) as (row, thread):
            mine, values = local(1, "int32"), shared(threads, "int32")

            def over_chunks(start: int, value: Callable[[Any], Any], combine: Callable[[Any, Any], Any]) -> Any:
                put(mine, i32(start), 0)
                with T.serial(-(-chunks // threads)) as i:
                    index = i * threads + thread
                    with T.If(index < chunks), T.Then():
                        put(mine, combine(mine[0], value(index)), 0)
                return held(reduced(mine[0], values, thread, combine))

            highest = over_chunks(-_MAGNITUDE, lambda i: maxima[row, i], T.max)
            chunk = over_chunks(chunks, lambda i: T.if_then_else(maxima[row, i] == highest, i, i32(chunks)), T.min)
            put(mine, i32(vocab), 0)

            def find(bits: Callable[[Any], Any]) -> None:
                def take(at: Any) -> None:
                    put(mine, T.min(mine[0], T.if_then_else(_key(bits(at)) == highest, at, i32(vocab))), 0)

                each_id(chunk, thread, take)

            from_source(row, find)
            at = reduced(mine[0], values, thread, T.min)
            with T.If(thread == 0), T.Then():
                put(best, at, row, 0)
                put(best, _from_key(highest), row, 1)

        with grid(threads, rows, chunks) as (row, chunk, thread), T.If(draws(row)), T.Then(), block("weigh"):
            scale, peak = knobs[row, 0] * f32(math.log2(math.e)), float_of(best[row, 1])
            mass, top = local(1), local(1, "int32")
            sums, tops = shared(threads), shared(threads, "int32")
            put(mass, f32(0), 0)
            put(top, i32(0), 0)

            def weigh(bits: Callable[[Any], Any]) -> None:
                def take(at: Any) -> None:
                    value, logit = local(1), held(bits(at))
                    put(value, T.min(T.exp2((float_of(logit) - peak) * scale), f32(1)), 0)
                    nothing = T.Or(logit == _BANNED, value[0] < f32(_TINY))
                    put(value, T.if_then_else(nothing, f32(0), value[0]), 0)
                    put(work, bits_of(value[0]), row, at)
                    put(mass, mass[0] + value[0], 0)
                    put(top, T.max(top[0], bits_of(value[0])), 0)

                each_id(chunk, thread, take)

            from_source(row, weigh)
            if vocab % CHUNK:

                def clear(at: Any) -> None:
                    with T.If(at >= vocab), T.Then():
                        put(work, i32(0), row, at)

                each_id(chunk, thread, clear, padding=True)
            total = reduced(mass[0], sums, thread, operator.add)
            highest = reduced(top[0], tops, thread, T.max)
            with T.If(thread == 0), T.Then():
                put(masses, total, row, chunk)
                put(maxima, highest, row, chunk)

        with grid(threads, rows) as (row, thread):
            with T.If(thread == 0), T.Then():
                put(chosen, best[row, 0], row, 0)
                put(chosen, best[row, 1], row, 1)
            with T.If(draws(row)), T.Then(), block("draw"):
                Drawing(vocab, threads, row, thread, knobs, limits, work, maxima, masses).draw(chosen)

    return build(name, body)


def _key(bits: Any) -> Any:
    """int32 that order as the floats of these bits do, zeros equal, and any NaN above all."""
    magnitude = T.bitwise_and(bits, i32(_MAGNITUDE))
    key = T.if_then_else(bits < 0, 0 - magnitude, bits)
    return T.if_then_else(magnitude > _INFINITE, i32(_MAGNITUDE), key)


def _from_key(key: Any) -> Any:
    """The bits of a float of this key."""
    return T.if_then_else(key < 0, bits_of(-float_of(0 - key)), key)
