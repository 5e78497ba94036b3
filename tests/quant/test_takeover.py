"""Grids taken over: every value of every grid, against the definition w = (u - zero) * scale."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.quant.group import INT3, INT3_X40, INT4, INT4_ZERO, INT8, GroupFormat, dequantize, unpack
from llmserve.quant.takeover import Grid, holders, holds, narrowest, widest

ALL = (INT3, INT3_X40, INT4, INT4_ZERO, INT8)


def every_value(bits: int, zero: int, group_size: int, k: int) -> Grid:
    """Rows in which each integer of so many bits stands at each place of some group; scales of both signs."""
    rows = 1 << bits
    u = (np.arange(rows)[:, None] + np.arange(k)) % rows
    groups = -(-k // group_size)
    scale = np.linspace(-1, 1, rows * groups).astype(np.float16).reshape(rows, groups)
    return Grid(u.astype(np.uint8), scale, np.full((rows, groups), zero), bits, group_size)


@pytest.mark.parametrize("fmt", ALL, ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_what_is_held_is_held_exactly(fmt: GroupFormat, bits: int) -> None:
    held = []
    for zero in range((1 << bits) + 1):
        grid = every_value(bits, zero, fmt.group_size, 77)
        if not holds(fmt, bits, grid.zero, grid.group_size):
            with pytest.raises(ValueError, match="does not hold"):
                grid.store(fmt)
            continue
        held.append(zero)
        stored = grid.store(fmt)
        expected = (grid.u.astype(float) - zero) * np.repeat(grid.scale.astype(float), fmt.group_size, 1)[:, :77]
        np.testing.assert_array_equal(dequantize(*stored[:2], fmt, 77, *stored[2:]), expected)
        np.testing.assert_array_equal(grid.dequantize(), expected)
    # One at a time, by hand: int3 keeps 3 bits around 3 or 4, int4 also smaller ones, a zero point all that fits.
    expected_zeros = {
        ("int3", 2): range(5), ("int3", 3): (3, 4), ("int3x40", 2): range(5), ("int3x40", 3): (3, 4),
        ("int4", 2): range(5), ("int4", 3): range(9), ("int4", 4): (7, 8),
        ("int4z", 2): range(5), ("int4z", 3): range(9), ("int4z", 4): range(17),
        ("int8", 2): range(5), ("int8", 3): range(9), ("int8", 4): range(17), ("int8", 5): range(33),
        ("int8", 8): (127, 128),
    }  # fmt: skip
    assert held == list(expected_zeros.get((fmt.name, bits), ()))


@given(seed=st.integers(0, 2**32 - 1), data=st.data())
def test_groups_go_their_own_ways(seed: int, data: st.DataObject) -> None:
    """Zero points and scales that differ by group: some groups as they are, some upside down."""
    bits, fmt = data.draw(st.sampled_from([(3, INT3), (4, INT4), (4, INT4_ZERO), (4, INT8), (8, INT8)]))
    rng, k = np.random.default_rng(seed), data.draw(st.integers(1, 100))
    groups = -(-k // 32)
    middle = 1 << (bits - 1)
    zero = rng.integers(middle - 1, middle + 1, (5, groups))
    if fmt.zero_point:
        zero = rng.integers(0, 16, (5, groups))
    u = rng.integers(0, 1 << bits, (5, k)).astype(np.uint8)
    grid = Grid(u, rng.standard_normal((5, groups)).astype(np.float16), zero, bits)
    stored = grid.store(fmt)
    np.testing.assert_array_equal(dequantize(*stored[:2], fmt, k, *stored[2:]), grid.dequantize())
    values = unpack(stored[0], fmt, fmt.padded(k))[:, k:]  # what fills the last group stands for 0
    assert (values == (stored[2][:, -1:] if fmt.zero_point else fmt.max_int)).all()


def test_which_format_suits() -> None:
    assert narrowest(4, np.array([[8, 7, 8]])) is INT4
    assert narrowest(4, np.array([[8, 5]])) is INT4_ZERO
    assert narrowest(5, np.array([[16]])) is INT8
    assert narrowest(3, np.array([[4]])) is INT3 and narrowest(3, np.array([[0, 7]])) is INT4
    assert narrowest(8, np.array([[128]])) is INT8 and narrowest(8, np.array([[128, 3]])) is None
    assert narrowest(3, np.array([[3]]), 40) is INT3_X40 and narrowest(4, np.array([[8]]), 40) is None
    assert widest([INT3, INT8, INT4_ZERO]) is INT8 and widest([INT4, INT4_ZERO]) is INT4_ZERO
    assert widest([INT3_X40]) is INT3_X40
    assert widest([INT3_X40, INT4]) is None
    assert holders(INT3)[0] is INT3 and INT8 in holders(INT4) and holders(INT3_X40) == (INT3_X40,)
    assert holders(INT4_ZERO) == (INT4_ZERO, INT8)
    for fmt in (INT3, INT4):
        assert all(holds(other, fmt.bits, np.array([fmt.max_int])) for other in holders(fmt))
