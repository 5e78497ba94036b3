"""Small kernels between the matmuls on CPUs: norms, gated activations, embedding rows, row selection, softcaps.

All are parallel over rows and vectorised within a row; a row's result does not depend on the rows beside it.
"""

from __future__ import annotations

import math
from typing import Any

from tvm.tirx import PrimFunc

from ...quant.group import GroupFormat
from ..tir import T, build, each_row, f32, full, put, sized, vec, when
from . import layout
from .blocks import Blocks
from .isa import Isa
from .prologue import Prologue, input_rows
from .vector_math import tanh


def prologue_alone(name: str, width: int, isa: Isa, prologue: Prologue) -> PrimFunc:
    """y float32 [M, width]: what a prologue gives, without a product. Arguments: its inputs, y, its outputs."""
    lanes = math.gcd(isa.lanes, width)

    def body() -> None:
        m = T.int64()
        rows = input_rows(prologue, m, width, isa)
        y = sized("y", (m, width), "float32")
        rows.declare_outputs()

        def make(row: Any) -> None:
            rows.begin(row)
            with T.serial(width // lanes) as i:
                put(y, rows.part(row, i * lanes, lanes), row, i * lanes, lanes=lanes)

        each_row(m, make)

    return build(name, body)


def quantized_rows(name: str, n: int, k: int, fmt: GroupFormat, isa: Isa) -> PrimFunc:
    """Embedding: out[i] = row ids[i] of a quantized table in tiles; ids int32 [M], out float32 [M, K]."""
    rows, groups = isa.rows, fmt.groups(k)

    def body() -> None:
        m = T.int64()
        ids = sized("ids", (m,), "int32")
        table = Blocks(n, k, fmt, isa)
        out = sized("out", (m, k), "float32")

        def look_up(i: Any) -> None:
            with T.serial(groups) as g:
                tile, r = ids[i] // rows, ids[i] % rows
                scale = table.scales(tile, g, r, 1)
                zero = T.cast(table.zeros(tile, g, r, 1), "float32") if fmt.zero_point else f32(fmt.max_int)
                for element in range(fmt.group_size):
                    step, lane = element // 4, 4 * r + element % 4
                    value = table.step(tile, g, step, 1, lane)
                    number = (T.cast(value, "float32") - zero) * scale
                    with when(k % fmt.group_size == 0 or g * fmt.group_size + element < k):
                        put(out, number, i, g * fmt.group_size + element)

        each_row(m, look_up)

    return build(name, body)


def float_rows(name: str, n: int, k: int, dtype: str, isa: Isa) -> PrimFunc:
    """Embedding: out[i] = row ids[i] of a float table in tiles; ids int32 [M], out float32 [M, K]."""

    def body() -> None:
        m = T.int64()
        ids = sized("ids", (m,), "int32")
        w = sized("w", (layout.tiles(n, isa.rows), k, isa.rows), dtype)
        out = sized("out", (m, k), "float32")

        def look_up(i: Any) -> None:
            with T.serial(k) as j:
                put(out, T.cast(w[ids[i] // isa.rows, j, ids[i] % isa.rows], "float32"), i, j)

        each_row(m, look_up)

    return build(name, body)


def take_rows(name: str, widths: tuple[int, int], isa: Isa) -> PrimFunc:
    """The same rows of two tensors: x, r float32 [M, its width], rows int32 [R], x[rows], r[rows]."""

    def body() -> None:
        m, count = T.int64(), T.int64()
        given = [sized(name, (m, width), "float32") for name, width in zip("xr", widths, strict=True)]
        rows = sized("rows", (count,), "int32")
        taken = [sized(f"{name}_taken", (count, width), "float32") for name, width in zip("xr", widths, strict=True)]
        with T.serial(count) as i:
            for source, target, width in zip(given, taken, widths, strict=True):
                lanes = math.gcd(isa.lanes, width)
                with T.serial(width // lanes) as j:
                    put(target, vec(source, rows[i], j * lanes, lanes=lanes), i, j * lanes, lanes=lanes)

    return build(name, body)


def cap_logits(name: str, width: int, scale: float, cap: float, isa: Isa) -> PrimFunc:
    """logits float32 [M, width], in place: x · scale, then cap · tanh(x / cap) unless cap is 0."""
    lanes = isa.lanes if width >= isa.lanes else 1

    def body() -> None:
        m = T.int64()
        logits = sized("logits", (m, width), "float32")

        def at(row: Any, first: Any, lanes: int) -> None:
            value = vec(logits, row, first, lanes=lanes) * full(f32(scale / cap if cap else scale), lanes)
            put(logits, full(f32(cap), lanes) * tanh(value, lanes) if cap else value, row, first, lanes=lanes)

        def make(row: Any) -> None:
            with T.serial(width // lanes) as i:
                at(row, i * lanes, lanes)
            for i in range(width // lanes * lanes, width):
                at(row, i, 1)

        each_row(m, make)

    return build(name, body)
