"""Allocation of a budget of bits to weight matrices.

The harm of each format is measured elsewhere (compile/sensitivity.py) and assumed to add up over matrices. This is then
the multiple-choice knapsack problem, solved exactly by dynamic programming (Kellerer et al. 2004, Knapsack Problems,
11.5); so more bits are never worse by this measure, and the result depends on the figures alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UnsupportedError
from .group import INT3, INT4, INT8, GroupFormat

CHOICES = (INT3, INT4, INT8)
_STEPS = 20_000  # of the budget, at most; real shapes have a common divisor that needs far fewer


@dataclass(frozen=True)
class Sensitivity:
    """The harm of one matrix [n, k] in each of CHOICES: the KL divergence, in nats, that it alone causes."""

    name: str
    shape: tuple[int, int]
    harm: Mapping[str, float]

    @property
    def weights(self) -> int:
        return self.shape[0] * self.shape[1]

    def nbytes(self, fmt: GroupFormat) -> int:
        return fmt.nbytes(*self.shape)

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> Sensitivity:
        n, k = raw["shape"]
        return cls(raw["name"], (n, k), dict(raw["harm"]))


def bits_per_weight(shapes: Sequence[tuple[int, int]], formats: Sequence[GroupFormat]) -> float:
    """Bits that matrices take, scales and padding included, over their number of weights."""
    stored = sum(fmt.nbytes(n, k) for (n, k), fmt in zip(shapes, formats, strict=True))
    return 8 * stored / sum(n * k for n, k in shapes)


def check_budget(shapes: Sequence[tuple[int, int]], bits: float) -> None:
    """Raises UnsupportedError when no choice of formats comes to `bits` per weight."""
    low, high = (bits_per_weight(shapes, [fmt] * len(shapes)) for fmt in (CHOICES[0], CHOICES[-1]))
    if not low <= bits + 1e-9:
        raise UnsupportedError(
            f"{bits:g} bits per weight are too few: with scales, this model's matrices take {low:.4g} at least."
        )
    if bits > high + 1e-9:
        raise UnsupportedError(
            f"{bits:g} bits per weight are more than the {high:.4g} that 8-bit weights take; "
            "leave --bits out, and use --quant q8 or none."
        )


def allocate(sensitivities: Sequence[Sensitivity], bits: float) -> dict[str, GroupFormat]:
    """The format of each matrix, by name, with the least harm in all among those within `bits` per weight.

    Raises UnsupportedError when the budget is out of reach.
    """
    check_budget([row.shape for row in sensitivities], bits)
    extra = [[row.nbytes(fmt) - row.nbytes(CHOICES[0]) for fmt in CHOICES] for row in sensitivities]
    base = sum(row.nbytes(CHOICES[0]) for row in sensitivities)
    budget = math.floor(bits * sum(row.weights for row in sensitivities) / 8 + 1e-6) - base
    span = sum(row[-1] for row in extra)
    # Rounded up where it must be coarse, so that what is chosen fits; the same for all budgets, so that more is better.
    unit = max(math.gcd(*(cost for row in extra for cost in row)), -(-span // _STEPS), 1)
    capacity = min(budget, span + len(extra) * unit) // unit
    best = np.zeros(capacity + 1)
    chosen = np.zeros((len(extra), capacity + 1), np.int8)
    for i, (row, costs) in enumerate(zip(sensitivities, extra, strict=True)):
        options = np.full((len(CHOICES), capacity + 1), np.inf)
        for j, (fmt, cost) in enumerate(zip(CHOICES, costs, strict=True)):
            units = -(-cost // unit)
            if units <= capacity:
                options[j, units:] = best[: capacity + 1 - units] + row.harm[fmt.name]
        chosen[i] = options.argmin(0)  # of equals, the smallest
        best = options.min(0)
    left, formats = capacity, {}
    for i in reversed(range(len(extra))):
        j = int(chosen[i, left])
        formats[sensitivities[i].name] = CHOICES[j]
        left -= -(-extra[i][j] // unit)
    return dict(reversed(formats.items()))
