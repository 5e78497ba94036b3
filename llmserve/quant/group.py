"""Group quantization in numpy: the memory formats of 3-, 4- and 8-bit weights, and the oracle for every kernel.

Weights are [out, in], packed along `in`, with one float16 scale per group: w ≈ (u - max_int) · scale, or with a zero
point of each group's own, w ≈ (u - zero) · scale. `int4`, `int8` and `int3x40` lie as in MLC's q4f16_1, q8f16_1 and
q3f16_1. This file knows no tvm and no tensor names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError

Array = npt.NDArray[Any]

# Elements handled at a time: a few float32 temporaries of a block fit the CPU's cache, and memory stays flat.
_BLOCK = 1 << 18


@dataclass(frozen=True)
class GroupFormat:
    """One packed layout: `group_size` inputs share a scale (and a zero point), in a whole number of uint32 words.

    Value i of a group sits at bits [i·bits, (i+1)·bits) of its words, lowest first. `spaced` layouts keep values whole
    within a word, as MLC does: `32 // bits` to a word, and its highest bits empty where 32 is no multiple.

    Any value that fits the bits may be stored, 2^bits - 1 included, and scales may be negative: `quantize` below uses
    neither, but formats that count from 2^(bits-1) can be taken over without loss by (15 - u) and a negative scale.
    """

    name: str
    bits: int
    group_size: int
    spaced: bool = False
    zero_point: bool = False

    def __post_init__(self) -> None:
        unit = self.per_word if self.spaced else 32
        if (self.group_size if self.spaced else self.group_size * self.bits) % unit:
            raise ValueError(f"{self.name}: a group of {self.group_size} takes no whole number of words")

    @property
    def per_word(self) -> int:
        """Values that lie whole in a word."""
        return 32 // self.bits

    @property
    def max_int(self) -> int:
        """The largest magnitude, and the offset that makes stored values unsigned: 7 for 4 bits."""
        return (1 << (self.bits - 1)) - 1

    @property
    def words_per_group(self) -> int:
        return self.group_size // self.per_word if self.spaced else self.group_size * self.bits // 32

    def groups(self, k: int) -> int:
        """Groups in a row of `k` inputs, the last one padded."""
        return -(-k // self.group_size)

    def words(self, k: int) -> int:
        """uint32 words in a row of `k` inputs."""
        return self.groups(k) * self.words_per_group

    def padded(self, k: int) -> int:
        """`k` rounded up to whole groups."""
        return self.groups(k) * self.group_size

    def nbytes(self, n: int, k: int) -> int:
        """Bytes of a quantized [n, k] weight, scales and zero points included."""
        return n * (4 * self.words(k) + (3 if self.zero_point else 2) * self.groups(k))


INT3 = GroupFormat("int3", bits=3, group_size=32)
INT3_X40 = GroupFormat("int3x40", bits=3, group_size=40, spaced=True)
INT4 = GroupFormat("int4", bits=4, group_size=32)
INT4_ZERO = GroupFormat("int4z", bits=4, group_size=32, zero_point=True)
INT8 = GroupFormat("int8", bits=8, group_size=32)
FORMATS = {fmt.name: fmt for fmt in (INT3, INT3_X40, INT4, INT8)}
"""What float weights can be rounded to; INT4_ZERO only takes over weights that were quantized elsewhere."""
ALL_FORMATS = {**FORMATS, INT4_ZERO.name: INT4_ZERO}
"""What weights can be stored as."""

Storage = GroupFormat | str
"""How a weight is stored: a group format, or a float dtype's name ("float32", "float16")."""


def as_float32(w: Array) -> npt.NDArray[np.float32]:
    """Widens float32, float16 or bfloat16 to float32, exactly."""
    if w.dtype == ml_dtypes.bfloat16:  # numpy's shift is several times quicker than the cast of ml_dtypes
        return (w.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return w.astype(np.float32, copy=False)


def quantize(w: Array, fmt: GroupFormat) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float16]]:
    """Quantizes float weights [N, K] to (q_weight uint32 [N, words(K)], q_scale float16 [N, groups(K)]).

    The scale is max|w| / max_int rounded to float16, and each value goes to the grid point of *that* scale nearest to
    it, so |w - dequantize(…)| ≤ scale/2 wherever the scale is a normal float16. Below that (max|w| < 2⁻¹⁴ · max_int)
    the error is at most max_int · 2⁻²⁵; a group too small for any scale is stored as zeros.

    Raises CheckpointError for NaN, infinity, and groups whose scale overflows float16; ValueError for a format with
    zero points, which only takes over weights that were quantized elsewhere.
    """
    if fmt.zero_point:
        raise ValueError(f"{fmt.name} is not a format to round to")
    n, k = w.shape
    q_weight = np.empty((n, fmt.words(k)), np.uint32)
    q_scale = np.empty((n, fmt.groups(k)), np.float16)
    for rows in row_blocks(n, fmt.padded(k)):
        groups = grouped(w[rows], fmt)
        largest = np.maximum(groups.max(axis=2), -groups.min(axis=2))
        with np.errstate(over="ignore"):
            scale = (largest / np.float32(fmt.max_int)).astype(np.float16)
        if not np.isfinite(scale).all():
            cause = "a weight too large for a float16 scale" if np.isfinite(largest).all() else "NaN or infinity"
            raise CheckpointError(f"The weights hold {cause}.")
        q_scale[rows] = scale
        grid = groups / np.where(scale == 0, np.inf, scale.astype(np.float32))[:, :, None]
        np.rint(grid, out=grid)
        np.clip(grid, -fmt.max_int, fmt.max_int, out=grid)
        grid += fmt.max_int
        q_weight[rows] = pack(grid.astype(np.uint8).reshape(len(grid), -1), fmt)
    return q_weight, q_scale


def dequantize(
    q_weight: Array, q_scale: Array, fmt: GroupFormat, k: int, q_zero: Array | None = None
) -> npt.NDArray[np.float32]:
    """The weights float32 [N, K] that (q_weight, q_scale) and, in formats with a zero point, q_zero uint8 [N, groups]
    stand for."""
    w = np.empty((len(q_weight), k), np.float32)
    for rows in row_blocks(len(w), fmt.padded(k)):
        groups = (
            unpack(q_weight[rows], fmt, fmt.padded(k)).astype(np.float32).reshape(-1, fmt.groups(k), fmt.group_size)
        )
        groups -= fmt.max_int if q_zero is None else q_zero[rows].astype(np.float32)[:, :, None]
        groups *= q_scale[rows].astype(np.float32)[:, :, None]
        w[rows] = groups.reshape(len(groups), -1)[:, :k]
    return w


def pack(u: Array, fmt: GroupFormat) -> npt.NDArray[np.uint32]:
    """Packs stored values uint8 [N, a whole number of groups] into words uint32 [N, words]."""
    if fmt.spaced or 32 % fmt.bits == 0:
        lanes = u.reshape(len(u), -1, fmt.per_word)
        words = lanes[:, :, 0].astype(np.uint32)
        for i in range(1, fmt.per_word):
            words |= lanes[:, :, i].astype(np.uint32) << np.uint32(i * fmt.bits)
        return words
    groups = u.reshape(len(u), -1, fmt.group_size)
    words = np.zeros((*groups.shape[:2], fmt.words_per_group), np.uint32)
    for i in range(fmt.group_size):
        word, shift = divmod(i * fmt.bits, 32)
        value = groups[:, :, i].astype(np.uint32)
        words[:, :, word] |= value << np.uint32(shift)
        if shift + fmt.bits > 32:
            words[:, :, word + 1] |= value >> np.uint32(32 - shift)
    return words.reshape(len(u), -1)


def unpack(q_weight: Array, fmt: GroupFormat, k: int) -> npt.NDArray[np.uint8]:
    """The stored values uint8 [N, k] of words uint32 [N, W]; `k` may take in the padding, up to padded(K)."""
    n, words = q_weight.shape
    mask = np.uint32((1 << fmt.bits) - 1)
    if fmt.spaced or 32 % fmt.bits == 0:
        u = np.empty((n, words, fmt.per_word), np.uint8)
        for i in range(fmt.per_word):
            u[:, :, i] = (q_weight >> np.uint32(i * fmt.bits)) & mask
    else:
        groups = q_weight.reshape(n, -1, fmt.words_per_group)
        u = np.empty((n, groups.shape[1], fmt.group_size), np.uint8)
        for i in range(fmt.group_size):
            word, shift = divmod(i * fmt.bits, 32)
            value = groups[:, :, word] >> np.uint32(shift)
            if shift + fmt.bits > 32:
                value = value | groups[:, :, word + 1] << np.uint32(32 - shift)
            u[:, :, i] = value & mask
    return u.reshape(n, -1)[:, :k]


def row_blocks(n: int, row_size: int) -> Iterator[slice]:
    step = max(1, _BLOCK // max(1, row_size))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def grouped(w: Array, fmt: GroupFormat) -> npt.NDArray[np.float32]:
    """Rows [R, K] as float32 [R, groups, group_size], padded with zeros, which take no part in a group's maximum."""
    n, k = w.shape
    wide = as_float32(np.ascontiguousarray(w))
    if pad := fmt.padded(k) - k:
        wide = np.pad(wide, ((0, 0), (0, pad)))
    return wide.reshape(n, fmt.groups(k), fmt.group_size)
