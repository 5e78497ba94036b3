"""Exponentials as vector code (LLVM would call libm once per lane), and reductions across lanes as trees."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

from ..tir import T, f32, full, put, scratch, vec

# 2**f on [0, 1): degree-5 polynomial, relative error below 3e-7, and exact at 0.
_EXP2 = (1.8775767e-3, 8.9893397e-3, 5.5826318e-2, 2.4015361e-1, 6.9315308e-1, 1.0)
_LIMIT = 126.0


def exp2(x: Any, lanes: int) -> Any:
    """2**x, float32 x lanes, with x clamped to [-126, 126]: the result is always a normal number."""
    x = T.min(T.max(x, full(f32(-_LIMIT), lanes)), full(f32(_LIMIT), lanes))
    whole = T.floor(x)
    fraction = x - whole
    result: Any = full(f32(_EXP2[0]), lanes)
    for coefficient in _EXP2[1:]:
        result = result * fraction + full(f32(coefficient), lanes)
    suffix = f"x{lanes}" if lanes > 1 else ""
    exponent = T.shift_left(T.cast(whole, f"int32{suffix}"), full(T.int32(23), lanes))
    return T.reinterpret(T.reinterpret(result, dtype=f"int32{suffix}") + exponent, dtype=f"float32{suffix}")


def exp(x: Any, lanes: int) -> Any:
    """e**x by way of `exp2`."""
    return exp2(x * full(f32(math.log2(math.e)), lanes), lanes)


def tanh(x: Any, lanes: int) -> Any:
    """tanh x = 1 - 2 / (e²ˣ + 1): within 1e-6 of it, and never above 1."""
    one = full(f32(1), lanes)
    return one - full(f32(2), lanes) / (exp(x + x, lanes) + one)


def across(vectors: list[Any], combine: Callable[[Any, Any], Any], lanes: int, dtype: str = "float32") -> Any:
    """All lanes of all vectors combined into a scalar, always in the same order: a tree, as a chain would wait on each.

    `lanes` must be a power of two; `dtype` is that of a lane.
    """
    value = reduce(combine, vectors)
    while lanes > 1:
        folded = scratch(lanes, dtype)
        put(folded, value, 0, lanes=lanes)
        lanes //= 2
        value = combine(vec(folded, 0, lanes=lanes), vec(folded, lanes, lanes=lanes))
    return value
