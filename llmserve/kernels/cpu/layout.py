"""Layout of weights for CPU kernels: tiles of `rows` output rows, interleaved so that a step is one load.

numpy only; blocks.py holds the matching loads. Tiles are made from storage once per machine.

A quantized weight [N, K], N padded to whole tiles, becomes uint8 [tiles, groups, block]: a tile is one stream.
A block is `vectors` vectors of 4 * rows bytes, the float16 scales [rows] and, if there are any, the uint8 zero points
[rows]. Step j of a group is the uint8 vector u[tile*rows + r, group*G + 4j + i] at lane 4r + i.
    8 bits: vector j is step j.
    4 bits: vector v holds step v in its low nibbles and step v + 4 in its high ones.
    3 bits: vector v holds steps 2v and 2v + 1 in bits 0-2 and 3-5. The low bits of the last two steps are in bits 6-7
            of vectors 0 and 1, their high bits in bits 6 and 7 of vector 2, or in bit 6 of vectors 2 and 3.
A float weight becomes [tiles, K, rows] in its own dtype.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ...quant.group import GroupFormat, unpack

BLOCK_ROWS = 1024  # rows unpacked at a time, so that the transient copies stay small


def tiles(n: int, rows: int) -> int:
    """Tiles that hold `n` output rows."""
    return -(-n // rows)


def steps(fmt: GroupFormat) -> int:
    """Steps of 4 inputs in a group."""
    return fmt.group_size // 4


def vectors(fmt: GroupFormat) -> int:
    """Byte vectors that a group takes per tile."""
    return fmt.words_per_group


def _interleave(u: npt.NDArray[np.uint8], fmt: GroupFormat, rows: int) -> npt.NDArray[np.uint8]:
    """uint8 [tiles * rows, groups * G] values → the packed tiles."""
    n, k = u.shape
    s = u.reshape(n // rows, rows, k // fmt.group_size, steps(fmt), 4).transpose(0, 2, 3, 1, 4)
    s = s.reshape(n // rows, k // fmt.group_size, steps(fmt), 4 * rows)
    if fmt.bits == 8:
        return np.ascontiguousarray(s)
    if fmt.bits == 4:
        return s[:, :, :4] | s[:, :, 4:] << 4
    *low, a, b = (s[:, :, j] for j in range(steps(fmt)))
    packed = np.stack([even | odd << 3 for even, odd in zip(low[::2], low[1::2], strict=True)], axis=2)
    packed[:, :, 0] |= a << 6
    packed[:, :, 1] |= b << 6
    packed[:, :, 2] |= (a >> 2) << 6
    packed[:, :, -1] |= (b >> 2) << (7 if len(low) == 6 else 6)
    return packed


def block_bytes(fmt: GroupFormat, rows: int) -> int:
    """Bytes that a tile has of a group."""
    return scales_at(fmt, rows) + (3 if fmt.zero_point else 2) * rows


def scales_at(fmt: GroupFormat, rows: int) -> int:
    """The byte of a block at which the scales begin."""
    return vectors(fmt) * 4 * rows


def tile_quantized(
    q_weight: npt.NDArray[np.uint32],
    q_scale: npt.NDArray[np.float16],
    fmt: GroupFormat,
    rows: int,
    q_zero: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[np.uint8]:
    """Stored words [N, words] and scales (and zero points) [N, groups] → blocks as above."""
    n, groups = q_scale.shape
    blocks = np.zeros((tiles(n, rows), groups, block_bytes(fmt, rows)), np.uint8)
    scales, zeros = scales_at(fmt, rows), scales_at(fmt, rows) + 2 * rows
    for start in range(0, n, BLOCK_ROWS):  # a multiple of every tile's rows
        words = q_weight[start : start + BLOCK_ROWS]
        u = np.zeros((tiles(len(words), rows) * rows, groups * fmt.group_size), np.uint8)
        u[: len(words)] = unpack(words, fmt, u.shape[1])
        first = start // rows
        into = blocks[first : first + len(u) // rows]
        into[:, :, :scales] = _interleave(u, fmt, rows).reshape(len(into), groups, scales)
    blocks[:, :, scales:zeros] = _tile_groups(q_scale, rows).view(np.uint8)
    if q_zero is not None:
        blocks[:, :, zeros:] = _tile_groups(q_zero, rows)
    return blocks


def _tile_groups(values: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    """[N, groups] → [tiles, groups, rows], padded with zeros."""
    n, groups = values.shape
    count = tiles(n, rows)
    padded = np.zeros((count * rows, groups), values.dtype)
    padded[:n] = values
    return np.ascontiguousarray(padded.reshape(count, rows, groups).transpose(0, 2, 1))


def tile_float(weight: npt.NDArray[np.generic], rows: int) -> npt.NDArray[np.generic]:
    """[N, K] → [tiles, K, rows] of the same dtype."""
    n, k = weight.shape
    out = np.zeros((tiles(n, rows), k, rows), weight.dtype)
    whole = n // rows
    out[:whole] = weight[: whole * rows].reshape(whole, rows, k).transpose(0, 2, 1)
    if n % rows:
        out[whole, :, : n % rows] = weight[whole * rows :].T
    return out
