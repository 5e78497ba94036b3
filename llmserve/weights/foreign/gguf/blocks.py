"""Block types of ggml: the floats of a block's bytes, and the types whose grids our formats hold.

Written from ggml's definitions of the blocks. Q4_0, Q5_0 and Q8_0 are w = (u - zero) · d with a float16 d for 32
values. The K-quants scale each of 8 or 16 parts of 256 values by a small integer times a float16, most with a minimum
taken off: no float16 scale and whole zero point says the same, so they are read as floats. So are Q4_1 and Q5_1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ....quant.group import INT4, INT8, GroupFormat, as_float32
from ....quant.takeover import Grid

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class BlockType:
    """A row of the table below.

    Attributes:
        values: in a block.
        layout: a block's fields, each (name, dtype, count).
        floats: blocks (a structured array [N]) → float32 [N, values].
        grid: blocks [N] → (u uint8 [N, values], zero), for types that are a grid of `bits` bits.
        suits: ours that a packed type goes into, None for plain floats.
    """

    name: str
    values: int
    layout: tuple[tuple[str, Any, int], ...]
    floats: Callable[[Array], Floats]
    grid: Callable[[Array], tuple[Array, int]] | None = None
    bits: int = 0
    suits: GroupFormat | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype([(name, dtype, (count,)) for name, dtype, count in self.layout])

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize

    def read(self, data: bytes, rows: int) -> Floats:
        """The floats float32 [rows, K] of whole rows."""
        return self.floats(np.frombuffer(data, self.dtype)).reshape(rows, -1)

    def read_grid(self, data: bytes, rows: int) -> Grid:
        """The same as integers and scales, for types with a grid."""
        assert self.grid is not None
        blocks = np.frombuffer(data, self.dtype)
        u, zero = self.grid(blocks)
        scale = blocks["d"].reshape(rows, -1)
        return Grid(u.reshape(rows, -1), scale, np.full(scale.shape, zero, np.int16), self.bits)


def _nibbles(q: Array) -> Array:
    """Bytes [N, 16] → values [N, 32]: the low nibbles, then the high ones."""
    return np.concatenate([q & 15, q >> 4], axis=1)


def _fifth_bits(words: Array) -> Array:
    """uint32 [N, 1] → its 32 bits at their fifth place, uint8 [N, 32]."""
    return ((words >> np.arange(32, dtype=np.uint32) & 1) << 4).astype(np.uint8)


def _q4_0(b: Array) -> tuple[Array, int]:
    return _nibbles(b["q"]), 8


def _q5_0(b: Array) -> tuple[Array, int]:
    return _nibbles(b["q"]) | _fifth_bits(b["high"]), 16


def _q8_0(b: Array) -> tuple[Array, int]:
    return b["q"].view(np.uint8) ^ np.uint8(128), 128


def _of_grid(grid: Callable[[Array], tuple[Array, int]]) -> Callable[[Array], Floats]:
    def floats(b: Array) -> Floats:
        u, zero = grid(b)
        return np.asarray((u.astype(np.float32) - np.float32(zero)) * b["d"].astype(np.float32))

    return floats


def _q4_1(b: Array) -> Floats:
    return np.asarray(b["d"].astype(np.float32) * _nibbles(b["q"]) + b["m"].astype(np.float32), np.float32)


def _q5_1(b: Array) -> Floats:
    u = _nibbles(b["q"]) | _fifth_bits(b["high"])
    return np.asarray(b["d"].astype(np.float32) * u + b["m"].astype(np.float32), np.float32)


def _pairs(q: Array, shifts: tuple[int, ...], width: int) -> Array:
    """Bytes [N, M] in runs of `width` → values [N, …] that lie at each of `shifts`, run by run, shift by shift."""
    runs = q.reshape(len(q), -1, 1, width) >> np.array(shifts, np.uint8)[:, None]
    return runs.reshape(len(q), -1)


def _parts(values: Array, scales: Array) -> Floats:
    """Values [N, 256] times a scale for each of their parts, [N, parts]."""
    n, parts = scales.shape
    return (values.reshape(n, parts, -1).astype(np.float32) * scales[:, :, None]).reshape(n, -1)


def _less(values: Floats, minima: Array) -> Floats:
    n, parts = minima.shape
    return (values.reshape(n, parts, -1) - minima[:, :, None]).reshape(n, -1)


def _q2_k(b: Array) -> Floats:
    scale = b["d"].astype(np.float32) * (b["scales"] & 15)
    minimum = b["dmin"].astype(np.float32) * (b["scales"] >> 4)
    return _less(_parts(_pairs(b["q"], (0, 2, 4, 6), 32) & 3, scale), minimum)


def _q3_k(b: Array) -> Floats:
    packed = b["scales"]
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    high = np.concatenate([packed[:, 8:] >> shift & 3 for shift in (0, 2, 4, 6)], axis=1)
    scale = b["d"].astype(np.float32) * ((low | high << 4).astype(np.int16) - 32)
    q = (_pairs(b["q"], (0, 2, 4, 6), 32) & 3).astype(np.int16)
    # A value whose bit in the mask is not set is 4 lower.
    q -= 4 - 4 * (_pairs(b["high"], tuple(range(8)), 32) & 1).astype(np.int16)
    return _parts(q, scale)


def _six_bits(packed: Array) -> tuple[Array, Array]:
    """Twelve bytes → eight scales and eight minima of 6 bits: four of each whole, the others' ends in spare bits."""
    first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (rest & 15) | (first >> 6) << 4], axis=1)
    minima = np.concatenate([second & 63, rest >> 4 | (second >> 6) << 4], axis=1)
    return scales, minima


def _with_minima(b: Array, values: Array) -> Floats:
    scales, minima = _six_bits(b["scales"])
    return _less(_parts(values, b["d"].astype(np.float32) * scales), b["dmin"].astype(np.float32) * minima)


def _q4_k(b: Array) -> Floats:
    return _with_minima(b, _pairs(b["q"], (0, 4), 32) & 15)


def _q5_k(b: Array) -> Floats:
    high = _pairs(b["high"], tuple(range(8)), 32) & 1
    return _with_minima(b, (_pairs(b["q"], (0, 4), 32) & 15) | high << 4)


def _q6_k(b: Array) -> Floats:
    q = (_pairs(b["q"], (0, 4), 64) & 15) | (_pairs(b["high"], (0, 2, 4, 6), 32) & 3) << 4
    return _parts(q.astype(np.int16) - 32, b["d"].astype(np.float32) * b["scales"])


def _plain(b: Array) -> Floats:
    return as_float32(b["w"])


_HALF = ("d", np.float16, 1)
_MIN = ("m", np.float16, 1)
_DMIN = ("dmin", np.float16, 1)
_FIFTH = ("high", np.uint32, 1)
# ggml's type number → type. Of the rest, the IQ types need tables of their own.
TYPES: dict[int, BlockType] = {
    0: BlockType("F32", 1, (("w", np.float32, 1),), _plain),
    1: BlockType("F16", 1, (("w", np.float16, 1),), _plain),
    30: BlockType("BF16", 1, (("w", ml_dtypes.bfloat16, 1),), _plain),
    2: BlockType("Q4_0", 32, (_HALF, ("q", np.uint8, 16)), _of_grid(_q4_0), _q4_0, 4, INT4),
    3: BlockType("Q4_1", 32, (_HALF, _MIN, ("q", np.uint8, 16)), _q4_1, suits=INT4),
    6: BlockType("Q5_0", 32, (_HALF, _FIFTH, ("q", np.uint8, 16)), _of_grid(_q5_0), _q5_0, 5, INT8),
    7: BlockType("Q5_1", 32, (_HALF, _MIN, _FIFTH, ("q", np.uint8, 16)), _q5_1, suits=INT8),
    8: BlockType("Q8_0", 32, (_HALF, ("q", np.int8, 32)), _of_grid(_q8_0), _q8_0, 8, INT8),
    10: BlockType("Q2_K", 256, (("scales", np.uint8, 16), ("q", np.uint8, 64), _HALF, _DMIN), _q2_k, suits=INT4),
    11: BlockType(
        "Q3_K", 256, (("high", np.uint8, 32), ("q", np.uint8, 64), ("scales", np.uint8, 12), _HALF), _q3_k, suits=INT4
    ),
    12: BlockType("Q4_K", 256, (_HALF, _DMIN, ("scales", np.uint8, 12), ("q", np.uint8, 128)), _q4_k, suits=INT4),
    13: BlockType(
        "Q5_K",
        256,
        (_HALF, _DMIN, ("scales", np.uint8, 12), ("high", np.uint8, 32), ("q", np.uint8, 128)),
        _q5_k,
        suits=INT8,
    ),
    14: BlockType(
        "Q6_K", 256, (("q", np.uint8, 128), ("high", np.uint8, 64), ("scales", np.int8, 16), _HALF), _q6_k, suits=INT8
    ),
}
