"""Takeover of integer grids that were quantized elsewhere, into our formats, without rounding any value again.

A matrix quantized elsewhere is w = (u - zero) · scale like ours, but with another zero. It is taken over group by
group: unchanged, shifted by a constant, or negated with a negative scale, since (u - z)·s = (z' - u - z' + z)·-s.
Groups larger than ours repeat their scale. This file knows no file format.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError
from .group import INT3, INT3_X40, INT4, INT4_ZERO, INT8, GroupFormat, pack

Array = npt.NDArray[Any]

# Each holds, of the grids that fit groups of 32, all that the ones before it hold; so of two that meet in one matrix
# the later one is right for both. INT3_X40 has groups of its own.
_ORDER = (INT3, INT4, INT4_ZERO, INT8)


@dataclass(frozen=True)
class Grid:
    """Rows of a matrix as integers: w[r, i] = (u[r, i] - zero[r, g]) · scale[r, g] with g = i // group_size.

    Attributes:
        u: uint8 [R, K], below 2^bits.
        scale: float16, bfloat16 or float32 [R, groups].
        zero: integers [R, groups].
        bits: of u.
        group_size: 32 or 40, what ours have; larger groups are repeated before they come here.
    """

    u: Array
    scale: Array
    zero: Array
    bits: int
    group_size: int = 32

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The weights float32 [R, K]; scale and result are rounded to float32 once, if at all."""
        k = self.u.shape[1]
        scale, zero = (np.repeat(a.astype(np.float32), self.group_size, axis=1)[:, :k] for a in (self.scale, self.zero))
        w: npt.NDArray[np.float32] = self.u.astype(np.float32)
        w -= zero
        w *= scale
        return w

    def take(self, rows: npt.NDArray[np.int64]) -> Grid:
        """Some rows, in this order."""
        return replace(self, u=self.u[rows], scale=self.scale[rows], zero=self.zero[rows])

    def store(self, fmt: GroupFormat) -> tuple[Array, ...]:
        """(q_weight, q_scale) or, with a zero point, (q_weight, q_scale, q_zero) of `fmt`, which must hold the grid.

        The integers are taken over as they are. Scales become float16: exactly, if they are float16 or are bfloat16 of
        a usual size (2⁻¹⁷ and above), else rounded, by 2⁻¹¹ of themselves at most.

        Raises CheckpointError for scales that float16 cannot hold, ValueError for a format that does not hold the grid.
        """
        with np.errstate(over="ignore"):
            scale = self.scale.astype(np.float16)
        if not np.isfinite(scale).all():
            finite = np.isfinite(self.scale.astype(np.float32)).all()
            raise CheckpointError(
                f"The scales hold {'a value too large for float16' if finite else 'NaN or infinity'}."
            )
        if not holds(fmt, self.bits, self.zero, self.group_size):
            raise ValueError(f"{fmt.name} does not hold this grid")
        n, k = self.u.shape
        u = np.zeros((n, scale.shape[1] * fmt.group_size), np.int16)
        u[:, :k] = self.u
        groups = u.reshape(n, -1, fmt.group_size)
        zero = self.zero.astype(np.int16)
        if fmt.zero_point:
            padding: Array = zero
            extra: tuple[Array, ...] = (zero.astype(np.uint8),)
        else:
            plain, _ = _ways(fmt, self.bits, zero)
            scale = np.where(plain, scale, -scale)
            groups *= np.where(plain, 1, -1).astype(np.int16)[:, :, None]
            groups += (fmt.max_int - np.where(plain, zero, -zero)).astype(np.int16)[:, :, None]
            padding, extra = np.full_like(zero, fmt.max_int), ()
        if pad := u.shape[1] - k:
            u[:, k:] = np.repeat(padding[:, -1:], pad, axis=1)
        return (pack(u.astype(np.uint8), fmt), scale, *extra)


def holds(fmt: GroupFormat, bits: int, zeros: Array, group_size: int = 32) -> bool:
    """Whether `fmt` takes over every value of `bits` bits that counts from any of `zeros`."""
    if fmt.group_size != group_size:
        return False
    if fmt.zero_point:
        return bits <= fmt.bits and bool(((zeros >= 0) & (zeros <= 255)).all())
    plain, upside_down = _ways(fmt, bits, zeros)
    return bool((plain | upside_down).all())


def narrowest(bits: int, zeros: Array, group_size: int = 32) -> GroupFormat | None:
    """The smallest format of ours that holds the grid, None if none does."""
    formats = (INT3_X40,) if group_size == INT3_X40.group_size else _ORDER
    return next((fmt for fmt in formats if holds(fmt, bits, zeros, group_size)), None)


def holders(fmt: GroupFormat) -> tuple[GroupFormat, ...]:
    """The formats that hold every grid that `fmt` holds, itself first."""
    return _ORDER[_ORDER.index(fmt) :] if fmt in _ORDER else (fmt,)


def widest(formats: Iterable[GroupFormat]) -> GroupFormat | None:
    """The format that holds what any of `formats` holds, None where their groups differ."""
    several = set(formats)
    if len(several) == 1:
        return several.pop()
    return max(several, key=_ORDER.index) if several <= set(_ORDER) else None


def _ways(fmt: GroupFormat, bits: int, zeros: Array) -> tuple[Array, Array]:
    """Which groups `fmt` holds by moving them, and which upside down: bool, of the shape of `zeros`."""
    z, top, room = zeros.astype(np.int32), (1 << bits) - 1, (1 << fmt.bits) - 1
    shift = fmt.max_int - z
    turned = fmt.max_int + z
    return (shift >= 0) & (top + shift <= room), (turned <= room) & (turned - top >= 0)
