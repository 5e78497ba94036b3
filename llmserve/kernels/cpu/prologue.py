"""Prologues of CPU kernels: a norm or a gated activation of the input rows, fused into the kernel that reads them.

A matrix product passes over each input row once before the product begins, to round it to 8 bits or to copy it. Norms
and activations are computed in that pass. `elementwise.prologue_alone` is the same code as a kernel of its own, so the
results are equal bit by bit.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

from ..base import NormKind
from ..tir import T, f32, full, put, scratch, sized, vec
from .isa import Isa
from .vector_math import across, exp


@dataclass(frozen=True)
class NormPrologue:
    """A norm of x. With `residual`, x is x + r first, and the sum is an output of its own.

    Arguments: x float32 [M, width], (r like x,) (weight float32 [width],) (bias like it); after the kernel's output
    (sum like x).
    """

    kind: NormKind
    residual: bool


@dataclass(frozen=True)
class GatePrologue:
    """y = activation(gate) * up (Shazeer 2020). Argument: x float32 [M, 2 * width], which holds gate, then up.

    `activation`: one of kernels.base.FUSED_ACTIVATIONS. gelu_tanh(x) is x times the logistic function of twice the
    argument of its tanh, so both are x / (1 + e⁻ᶻ).
    """

    activation: str = "silu"


Prologue = NormPrologue | GatePrologue | None
"""None: the rows are those of a tensor x float32 [M, width], unchanged."""


class InputRows:
    """The rows of a tensor argument, unchanged; made while a kernel's arguments are declared, inputs first."""

    def __init__(self, m: Any, width: int, isa: Isa) -> None:
        self._m, self._width, self._lanes = m, width, math.gcd(isa.lanes, width)
        self.tensor = sized("x", (m, width), "float32")

    def declare_outputs(self) -> None:
        """Declare the arguments that come after the kernel's own output."""

    def begin(self, row: Any) -> None:
        """Emit what a row's elements depend on, such as its mean; in the block that reads them."""

    def part(self, row: Any, first: Any, lanes: int) -> Any:
        """`lanes` elements of the row of the last `begin`."""
        return vec(self.tensor, row, first, lanes=lanes)


class _NormedRows(InputRows):
    def __init__(self, m: Any, width: int, isa: Isa, norm: NormPrologue) -> None:
        super().__init__(m, width, isa)
        self._norm = norm
        self._residual = sized("residual", (m, width), "float32") if norm.residual else None
        self._weight = sized("norm", (width,), "float32") if norm.kind.weight else None
        self._bias = sized("norm_bias", (width,), "float32") if norm.kind.bias else None

    def declare_outputs(self) -> None:
        if self._norm.residual:
            self._sum = sized("sum", (self._m, self._width), "float32")

    def begin(self, row: Any) -> None:
        lanes, kind = self._lanes, self._norm.kind
        acc, self._inverse, self._mean = scratch(lanes), scratch(1), scratch(1)
        put(acc, full(f32(0), lanes), 0, lanes=lanes)
        with T.serial(self._width // lanes) as i:
            if self._residual is not None:
                both = super().part(row, i * lanes, lanes) + vec(self._residual, row, i * lanes, lanes=lanes)
                put(self._sum, both, row, i * lanes, lanes=lanes)
            value = self._plain(row, i * lanes, lanes)
            put(acc, vec(acc, 0, lanes=lanes) + (value if kind.centred else value * value), 0, lanes=lanes)
        if kind.centred:
            put(self._mean, across([vec(acc, 0, lanes=lanes)], operator.add, lanes) * f32(1 / self._width), 0)
            put(acc, full(f32(0), lanes), 0, lanes=lanes)
            with T.serial(self._width // lanes) as i:
                value = self._centred(row, i * lanes, lanes)
                put(acc, vec(acc, 0, lanes=lanes) + value * value, 0, lanes=lanes)
        total = across([vec(acc, 0, lanes=lanes)], operator.add, lanes)
        put(self._inverse, f32(1) / T.sqrt(total * f32(1 / self._width) + f32(kind.eps)), 0)

    def _plain(self, row: Any, first: Any, lanes: int) -> Any:
        return vec(self.tensor if self._residual is None else self._sum, row, first, lanes=lanes)

    def _centred(self, row: Any, first: Any, lanes: int) -> Any:
        value = self._plain(row, first, lanes)
        return value - full(self._mean[0], lanes) if self._norm.kind.centred else value

    def part(self, row: Any, first: Any, lanes: int) -> Any:
        value = self._centred(row, first, lanes) * full(self._inverse[0], lanes)
        if self._weight is not None:
            value = value * vec(self._weight, first, lanes=lanes)
        return value if self._bias is None else value + vec(self._bias, first, lanes=lanes)


class _GatedRows(InputRows):
    def __init__(self, m: Any, width: int, isa: Isa, activation: str) -> None:
        super().__init__(m, 2 * width, isa)
        self._up, self._activation = width, activation

    def part(self, row: Any, first: Any, lanes: int) -> Any:
        gate, up = super().part(row, first, lanes), super().part(row, self._up + first, lanes)
        inner = gate
        if self._activation == "gelu_tanh":
            twice = 2 * math.sqrt(2 / math.pi)
            inner = gate * (full(f32(twice), lanes) + full(f32(twice * 0.044715), lanes) * gate * gate)
        return gate / (full(f32(1), lanes) + exp(full(f32(0), lanes) - inner, lanes)) * up


def input_rows(prologue: Prologue, m: Any, width: int, isa: Isa) -> InputRows:
    """Declares the inputs of a prologue; returns the rows [M, width] that it makes of them."""
    if isinstance(prologue, NormPrologue):
        return _NormedRows(m, width, isa, prologue)
    return InputRows(m, width, isa) if prologue is None else _GatedRows(m, width, isa, prologue.activation)
