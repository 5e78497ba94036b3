"""Allocation of a budget of bits: against all allocations there are, and over many budgets."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.errors import UnsupportedError
from llmserve.quant import mixed
from llmserve.quant.group import INT3, INT8
from llmserve.quant.mixed import CHOICES, Sensitivity, allocate, bits_per_weight


def rows_of(seed: int, count: int, irregular: bool = False) -> list[Sensitivity]:
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        n, k = int(rng.integers(1, 9)) * 64, int(rng.integers(1, 9)) * (17 if irregular else 32)
        base = float(rng.gamma(1.0))
        harm = dict(zip(("int3", "int4", "int8"), base * np.sort(rng.random(3))[::-1], strict=True))
        rows.append(Sensitivity(f"m{i}", (n, k), {name: float(value) for name, value in harm.items()}))
    return rows


def stored_bits(rows: list[Sensitivity], formats: dict) -> float:
    return bits_per_weight([row.shape for row in rows], [formats[row.name] for row in rows])


def harm(rows: list[Sensitivity], formats: dict) -> float:
    return sum(row.harm[formats[row.name].name] for row in rows)


@given(seed=st.integers(0, 1000), bits=st.floats(3.6, 8.4))
def test_no_allocation_is_better(seed: int, bits: float) -> None:
    """Of 4 matrices: each of the 81."""
    rows = rows_of(seed, 4)
    formats = allocate(rows, bits)
    assert list(formats) == [row.name for row in rows] and stored_bits(rows, formats) <= bits + 1e-9
    every = [dict(zip(formats, chosen, strict=True)) for chosen in product(CHOICES, repeat=4)]
    best = min(harm(rows, other) for other in every if stored_bits(rows, other) <= bits + 1e-9)
    assert harm(rows, formats) == pytest.approx(best)


@pytest.mark.parametrize("coarse", [False, True])
def test_the_budget_is_met_and_more_bits_are_never_worse(coarse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the shapes have no common measure and the arithmetic is coarse."""
    if coarse:
        monkeypatch.setattr(mixed, "_STEPS", 300)
    rows = rows_of(7, 40, irregular=coarse)
    low = bits_per_weight([row.shape for row in rows], [INT3] * len(rows))
    high = bits_per_weight([row.shape for row in rows], [INT8] * len(rows))
    before = np.inf
    for bits in np.linspace(low, high, 60):
        formats = allocate(rows, float(bits))
        assert stored_bits(rows, formats) <= bits + 1e-6
        assert harm(rows, formats) <= before + 1e-12
        before = harm(rows, formats)
    assert formats == dict.fromkeys(formats, INT8) or coarse
    assert allocate(rows, 5.0) == allocate(rows, 5.0)


def test_nothing_is_left_over_that_would_help() -> None:
    """With whole multiples of one size the budget is used up to less than the smallest step."""
    rows = rows_of(3, 30)
    smallest = min(row.nbytes(CHOICES[1]) - row.nbytes(CHOICES[0]) for row in rows)
    weights = sum(row.weights for row in rows)
    assert 4.0 - stored_bits(rows, allocate(rows, 4.0)) < 8 * smallest / weights


@pytest.mark.parametrize(("bits", "words"), [(3.4, "take 3.5 at least"), (0, "3.5 at least"), (9, "8.5 that 8-bit")])
def test_budgets_out_of_reach(bits: float, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        allocate(rows_of(0, 5), bits)


def test_bits_count_scales_and_padding() -> None:
    assert bits_per_weight([(64, 64)], [INT3]) == 3.5
    assert bits_per_weight([(64, 40)], [INT3]) == 8 * (2 * 14) / 40
