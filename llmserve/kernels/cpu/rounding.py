"""Rounding of activations to int8 for quantized products, with a scale for one or several groups of inputs.

Rows lie in blocks, [block, group, row, input], of as many rows as share a tile: a tile reads one stream, in which the
parts of the rows are at fixed distances, whatever the number of rows.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from ...quant.group import GroupFormat
from ..tir import T, block, f32, full, i32, put, scratch, vec
from .vector_math import across

MAX_LANES = 16  # of the quantizer


def shared_groups(fmt: GroupFormat) -> int:
    """Groups of weights whose activations share a scale: beside weights of 3 or 4 bits the coarser rounding is not seen
    (docs/performance.md has figures), beside 8 bits it would be."""
    return 1 if fmt.bits == 8 else 4


class RoundedActivations:
    """Scratch for M rows of K inputs, in blocks of `height` rows; of a block's rows past M only the scales mean
    something, which `blank` sets. -`offset` times each group's sum is kept too."""

    def __init__(self, m: Any, k: int, fmt: GroupFormat, height: int, offset: int) -> None:
        self._k, self._size, self._offset, self._height = k, fmt.group_size, offset, height
        self._groups, self._shared = fmt.groups(k), shared_groups(fmt)
        blocks = (m + height - 1) // height
        self.padded = blocks * height
        self._values = scratch((blocks, self._groups, height, self._size), "int8")
        self._scales = scratch((blocks, -(-self._groups // self._shared), height))
        self._sums = scratch((blocks, self._groups, height), "int32")

    def four(self, row: Any, i: int, group: Any, step: int) -> Any:
        """The inputs of a step of the i-th row from `row` on, which begins a block, in an int32."""
        lanes = vec(self._values, row // self._height, group, i, 4 * step, lanes=4)
        return T.reinterpret(lanes, dtype="int32")

    def scale(self, row: Any, i: int, several: Any) -> Any:
        """Of `shared_groups` groups: the first ones', the next ones', …"""
        return self._scales[row // self._height, several, i]

    def sum(self, row: Any, i: int, group: Any) -> Any:
        """-offset times the sum of the group, int32."""
        return self._sums[row // self._height, group, i]

    def round(self, row: Any, part: Callable[[Any, int], Any]) -> None:
        """Emit the rounding of a row whose elements are `part(first, lanes)`."""
        together = self._shared * self._size
        whole, tail = divmod(self._k, together)
        with T.serial(whole) as several:
            self._round(row, several, together, part)
        if tail:
            self._round(row, T.int64(whole), tail, part)

    def _round(self, row: Any, several: Any, valid: int, part: Callable[[Any, int], Any]) -> None:
        """Groups with one scale, which have `valid` elements."""
        size, first = self._size, several * self._shared
        block_of, i, count = row // self._height, row % self._height, -(-valid // size)
        lanes = math.gcd(valid, size, MAX_LANES)  # or a vector would reach into the next group
        with block("quantize"):
            inverse, x, values = scratch(2), scratch(valid), scratch(count * size, "int32")
            for v in range(0, valid, lanes):
                put(x, part(first * size + v, lanes), v, lanes=lanes)
            parts = [vec(x, v, lanes=lanes) for v in range(0, valid, lanes)]
            put(inverse, across([T.fabs(part) for part in parts], T.max, lanes), 0)
            put(self._scales, inverse[0] * f32(1 / 127), block_of, several, i)
            put(inverse, T.if_then_else(inverse[0] > f32(0), f32(127) / inverse[0], f32(0)), 1)
            for v in range(0, count * size, lanes):
                rounded: Any = full(i32(0), lanes)
                if v < valid:
                    rounded = T.cast(T.nearbyint(vec(x, v, lanes=lanes) * full(inverse[1], lanes)), f"int32x{lanes}")
                put(values, rounded, v, lanes=lanes)
                small = T.cast(vec(values, v, lanes=lanes), f"int8x{lanes}")
                put(self._values, small, block_of, first + v // size, i, v % size, lanes=lanes)
            for c in range(count):
                parts = [vec(values, v, lanes=lanes) for v in range(c * size, (c + 1) * size, lanes)]
                total = across(parts, operator.add, lanes, "int32")
                put(self._sums, total * i32(-self._offset), block_of, first + c, i)

    def blank(self, row: Any) -> None:
        """Emit zeros for the scales of a row that is not there: stray memory may be denormal, and slow to multiply."""
        with T.serial(-(-self._groups // self._shared)) as several:
            put(self._scales, f32(0), row // self._height, several, row % self._height)
