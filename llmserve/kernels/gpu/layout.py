"""Layout of weights for GPU kernels, and a thread's loads of them: 3, 4 and 8 bits in words, or floats.

Quantized weights stay as they are stored (quant/group.py): rows of uint32 words along the inputs, lowest bits first,
and a scale per group. Scales and zero points are in the dtype of activations, as some GPUs know no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...quant.group import GroupFormat, Storage
from ..tir import T, i32, put, sized, vec
from .threads import local

FLOAT_GROUP = 32  # float weights are read in runs of as many


@dataclass(frozen=True)
class WeightLayout:
    """One weight matrix [n, k] in a GPU's memory.

    Attributes:
        storage: a group format, or the float dtype's name.
        dtype: of activations, scales and zero points.
    """

    n: int
    k: int
    storage: Storage
    dtype: str

    @property
    def fmt(self) -> GroupFormat | None:
        return self.storage if isinstance(self.storage, GroupFormat) else None

    @property
    def name(self) -> str:
        kind = self.fmt.name if self.fmt else self.storage
        return f"{kind}_{self.dtype}_{self.n}x{self.k}"

    @property
    def group(self) -> int:
        """Weights that are read together."""
        return self.fmt.group_size if self.fmt else FLOAT_GROUP

    @property
    def groups(self) -> int:
        return -(-self.k // self.group)

    @property
    def unit(self) -> int:
        """Weights that one thread unpacks by itself: a divisor of the group, in at most two words."""
        return self.fmt.per_word if self.fmt and self.fmt.spaced else 8

    @property
    def offset(self) -> int:
        """The number subtracted from a stored value, where there are no zero points."""
        return self.fmt.max_int if self.fmt else 0

    @property
    def params(self) -> dict[str, tuple[tuple[int, ...], str]]:
        if self.fmt is None:
            return {"w": ((self.n, self.k), self.dtype)}
        params: dict[str, tuple[tuple[int, ...], str]] = {
            "q": ((self.n, self.fmt.words(self.k)), "uint32"),
            "s": ((self.n, self.groups), self.dtype),
        }
        if self.fmt.zero_point:
            params["z"] = ((self.n, self.groups), self.dtype)
        return params

    def arrange(self, stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """From storage to `params`."""
        if self.fmt is None:
            return {"w": stored["weight"].astype(self.dtype)}
        out = {"q": stored["q_weight"], "s": stored["q_scale"].astype(self.dtype)}
        if self.fmt.zero_point:
            out["z"] = stored["q_zero"].astype(self.dtype)
        return out

    def arguments(self) -> WeightTensors:
        """Declares the parameters as arguments of the function that is being built."""
        buffers = {name: sized(name, shape, dtype) for name, (shape, dtype) in self.params.items()}
        return WeightTensors(self, buffers)


@dataclass(frozen=True)
class WeightTensors:
    """The parameters of one weight matrix inside a kernel."""

    layout: WeightLayout
    buffers: Mapping[str, Any]

    def scale(self, row: Any, group: Any) -> Any:
        """float32; 1 for float weights."""
        return T.cast(self.buffers["s"][row, group], "float32")

    def zero(self, row: Any, group: Any) -> Any:
        """The number subtracted from the group's stored values, float32."""
        if "z" in self.buffers:
            return T.cast(self.buffers["z"][row, group], "float32")
        return T.float32(self.layout.offset)

    def load_group(self, words: Any, at: int, row: Any, group: Any) -> None:
        """The words of a whole group into a local buffer, from `at` on."""
        fmt = self.layout.fmt
        assert fmt is not None
        count = fmt.words_per_group
        lanes = 4 if count % 4 == 0 else 1
        for word in range(0, count, lanes):
            put(words, vec(self.buffers["q"], row, group * count + word, lanes=lanes), at + word, lanes=lanes)

    def stored(self, words: Any, at: int, i: int) -> Any:
        """Value i of a group that `load_group` read, as float32: not yet less its zero point, nor scaled."""
        fmt = self.layout.fmt
        assert fmt is not None
        if fmt.spaced or 32 % fmt.bits == 0:
            word, shift = i // fmt.per_word, i % fmt.per_word * fmt.bits
            value = _shifted(words[at + word], shift)
        else:
            word, shift = divmod(i * fmt.bits, 32)
            value = _shifted(words[at + word], shift)
            if shift + fmt.bits > 32:
                value = T.bitwise_or(value, T.shift_left(words[at + word + 1], T.uint32(32 - shift)))
        return _as_float(T.bitwise_and(value, T.uint32((1 << fmt.bits) - 1)))

    def unit(self, row: Any, group: Any, index: Any) -> list[Any]:
        """The weights of unit `index` (not known to Python) of a group: a list of `layout.unit` float32 values.

        Must be called inside a block; words are kept in registers.
        """
        fmt, size = self.layout.fmt, self.layout.unit
        if fmt is None:
            first = group * self.layout.group + index * size
            weights = self.buffers["w"]
            inside = self.layout.k % self.layout.group == 0
            return [
                T.cast(
                    weights[row, first + i]
                    if inside
                    else T.if_then_else(first + i < self.layout.k, weights[row, first + i], _zero(self.layout.dtype)),
                    "float32",
                )
                for i in range(size)
            ]
        q, base = self.buffers["q"], group * fmt.words_per_group
        words = local(2, "uint32")
        if fmt.bits == 8:
            for w in range(2):
                put(words, q[row, base + index * 2 + w], w)
            bits = [(words[i // 4], i % 4 * 8) for i in range(size)]
        elif fmt.spaced or fmt.bits == 4:
            put(words, q[row, base + index], 0)
            bits = [(words[0], i * fmt.bits) for i in range(size)]
        else:
            # 24 bits that may straddle two words; shifting twice keeps each shift below 32.
            first, shift = index * 3 // 4, T.cast(index * 24 % 32, "uint32")
            put(words, q[row, base + first], 0)
            put(words, q[row, base + T.min(first + 1, i32(2))], 1)
            high = T.shift_left(T.shift_left(words[1], T.uint32(31) - shift), T.uint32(1))
            put(words, T.bitwise_or(T.shift_right(words[0], shift), high), 0)
            bits = [(words[0], i * 3) for i in range(size)]
        mask = T.uint32((1 << fmt.bits) - 1)
        values = [_as_float(T.bitwise_and(_shifted(word, shift), mask)) for word, shift in bits]
        factors = local(2)
        put(factors, self.scale(row, group), 0)
        put(factors, self.zero(row, group), 1)
        return [(value - factors[1]) * factors[0] for value in values]


def _shifted(word: Any, shift: int) -> Any:
    return T.shift_right(word, T.uint32(shift)) if shift else word


def _as_float(value: Any) -> Any:
    # Through int32: all GPUs convert that in one instruction.
    return T.cast(T.cast(value, "int32"), "float32")


def _zero(dtype: str) -> Any:
    return T.cast(T.float32(0), dtype)
