"""Blocks of a quantized weight as a kernel's argument: the loads that match the packing of layout.py."""

from __future__ import annotations

from typing import Any

from ...quant.group import GroupFormat
from ..tir import T, full, prefetch, sized, vec
from . import layout
from .isa import Isa

LINE = 64  # bytes


class Blocks:
    """uint8 [tiles, groups, block] of a weight [n, k], declared where it stands among a kernel's arguments."""

    def __init__(self, n: int, k: int, fmt: GroupFormat, isa: Isa) -> None:
        self.fmt, self.rows = fmt, isa.rows
        self._vector, self._size = 4 * isa.rows, layout.block_bytes(fmt, isa.rows)
        self._scales = layout.scales_at(fmt, isa.rows)
        self._buffer = sized("q", (layout.tiles(n, isa.rows), fmt.groups(k), self._size), "uint8")

    def step(self, tile: Any, group: Any, step: int, lanes: int, first: Any = 0, *, pairs: bool = False) -> Any:
        """Step `step` of a group as uint8 x lanes, from lane `first` on; layout.py says where its bits lie.

        `pairs` of bytes are shifted then, and masked, for who needs the units that LLVM would shift bytes with: it
        multiplies them by bit matrices where the target can (GFNI), with the units of the dot products.
        """
        bits = self.fmt.bits

        def load(v: int) -> Any:
            return vec(self._buffer, tile, group, v * self._vector + first, lanes=lanes)

        def field(v: int, shift: int, mask: int) -> Any:
            value, dtype, count = load(v), T.uint8, lanes
            if shift and pairs:
                value, dtype, count = T.reinterpret(value, dtype=f"uint16x{lanes // 2}"), T.uint16, lanes // 2
                mask |= mask << 8
            if shift:
                value = T.shift_right(value, full(dtype(shift), count))
            value = T.bitwise_and(value, full(dtype(mask), count))
            return value if count == lanes else T.reinterpret(value, dtype=f"uint8x{lanes}")

        if bits == 8:
            return load(step)
        if bits == 4:
            return field(step % 4, 0 if step < 4 else 4, 15)
        last = layout.steps(self.fmt) - 2
        if step < last:
            return field(step // 2, 3 * (step % 2), 7)
        high = field(2, 4 + step - last, 4) if last == 6 else field(step - 6, 4, 4)
        return T.bitwise_or(field(step - last, 6, 3), high)

    def scales(self, tile: Any, group: Any, row: Any = 0, lanes: int | None = None) -> Any:
        """float32 x lanes: the scales of the tile's rows, all of them or `lanes` from `row` on."""
        lanes = lanes or self.rows
        raw = vec(self._buffer, tile, group, self._scales + 2 * row, lanes=2 * lanes)
        suffix = f"x{lanes}" if lanes > 1 else ""
        return T.cast(T.reinterpret(raw, dtype=f"float16{suffix}"), f"float32{suffix}")

    def zeros(self, tile: Any, group: Any, row: Any = 0, lanes: int | None = None) -> Any:
        """uint8 x lanes: zero points like `scales`."""
        at = self._scales + 2 * self.rows + row
        return vec(self._buffer, tile, group, at, lanes=lanes or self.rows)

    def prefetch(self, tile: Any, group: Any) -> None:
        """Ask for the lines of a block that will be read soon."""
        for at in range(0, self._size, LINE):
            prefetch(self._buffer, tile, group, at)
