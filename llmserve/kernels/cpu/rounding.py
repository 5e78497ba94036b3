"""Rows of activations as a quantized product reads them: int8 with a scale per group of inputs.

Rows lie in blocks of as many as share a tile, [block, group, row, input]: a tile reads one stream, and finds each row's
part at a fixed distance from the first one's, whatever the number of rows.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..tir import T, block, f32, full, i32, put, scratch, vec
from .vector_math import across

MAX_LANES = 16  # of the quantizer


def quantize_activations(
    x: npt.NDArray[np.float32], group: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """The kernels' activation rounding in numpy: x [M, K] → (int8 [M, G, group], scales float32 [M, G]).

    Symmetric per group, scale = max|x| / 127, rounding half to even; K is padded with zeros to whole groups.
    """
    m, k = x.shape
    groups = -(-k // group)
    padded = np.zeros((m, groups * group), np.float32)
    padded[:, :k] = x
    padded = padded.reshape(m, groups, group)
    largest = np.abs(padded).max(-1)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    return np.rint(padded * inverse[:, :, None]).astype(np.int8), largest * np.float32(1 / 127)


class Rounded:
    """Scratch for M rows of K inputs in groups of `size`, in blocks of `height` rows; a block's rows past M may hold
    anything but for their scales, which `blank` sets. With an `offset`, -offset times each group's sum is kept too."""

    def __init__(self, m: Any, k: int, size: int, height: int, offset: int) -> None:
        self._k, self._size, self._offset, self._height = k, size, offset, height
        self._groups = -(-k // size)
        blocks = (m + height - 1) // height
        self.padded = blocks * height
        shape = (blocks, self._groups, height)
        self._values = scratch((*shape, size), "int8")
        self._scales = scratch(shape)
        self._sums = scratch(shape, "int32") if offset else None

    def four(self, row: Any, i: int, group: Any, step: int) -> Any:
        """The inputs of a step of the i-th row from `row` on, which begins a block, in an int32."""
        lanes = vec(self._values, row // self._height, group, i, 4 * step, lanes=4)
        return T.reinterpret(lanes, dtype="int32")

    def scale(self, row: Any, i: int, group: Any) -> Any:
        return self._scales[row // self._height, group, i]

    def sum(self, row: Any, i: int, group: Any) -> Any:
        """-offset times the sum of the group, int32."""
        assert self._sums is not None
        return self._sums[row // self._height, group, i]

    def round(self, row: Any, part: Callable[[Any, int], Any]) -> None:
        """Emit the rounding of a row whose elements are `part(first, lanes)`."""
        tail = self._k - (self._groups - 1) * self._size
        whole = self._groups if tail == self._size else self._groups - 1
        with T.serial(whole) as g:
            self._round_group(row, g, self._size, part)
        if whole < self._groups:
            self._round_group(row, T.int64(whole), tail, part)

    def _round_group(self, row: Any, g: Any, valid: int, part: Callable[[Any, int], Any]) -> None:
        """`valid` of the group's elements are there."""
        size, at = self._size, (row // self._height, g, row % self._height)
        lanes = math.gcd(valid, size, MAX_LANES)  # or the last vector would reach into the next group
        with block("quantize"):
            inverse, x, values = scratch(2), scratch(size), scratch(size, "int32")
            for v in range(0, valid, lanes):
                put(x, part(g * size + v, lanes), v, lanes=lanes)
            parts = [vec(x, v, lanes=lanes) for v in range(0, valid, lanes)]
            put(inverse, across([T.fabs(part) for part in parts], T.max, lanes), 0)
            put(self._scales, inverse[0] * f32(1 / 127), *at)
            put(inverse, T.if_then_else(inverse[0] > f32(0), f32(127) / inverse[0], f32(0)), 1)
            for v in range(0, size, lanes):
                rounded: Any = full(i32(0), lanes)
                if v < valid:
                    rounded = T.cast(T.nearbyint(vec(x, v, lanes=lanes) * full(inverse[1], lanes)), f"int32x{lanes}")
                put(values, rounded, v, lanes=lanes)
                put(self._values, T.cast(vec(values, v, lanes=lanes), f"int8x{lanes}"), *at, v, lanes=lanes)
            if self._sums is not None:
                parts = [vec(values, v, lanes=lanes) for v in range(0, valid, lanes)]
                put(self._sums, across(parts, operator.add, lanes, "int32") * i32(-self._offset), *at)

    def blank(self, row: Any) -> None:
        """Emit zeros for the scales of a row that is not there: stray memory may be denormal, and slow to multiply."""
        with T.serial(self._groups) as g:
            put(self._scales, f32(0), row // self._height, g, row % self._height)
