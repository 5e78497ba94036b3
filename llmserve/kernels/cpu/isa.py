"""CPU instruction sets, one row each: the width of a tile, and the dot product of 8-bit integers.

A tile holds `rows` output rows; a step of it is a vector of 4 x rows unsigned weights against the same 4 signed
activations for every row. Only the dot product differs between sets: everything else is vector code that LLVM lowers.
Weights take any level of their format, 0 to 2^bits - 1, activations -127 to 127; sums are exact for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.target.codegen import llvm_lookup_intrinsic_id

from ...quant.group import GroupFormat
from ..tir import T, full, put, scratch, vec
from .layout import steps

MAX_ACTIVATION = 127  # in size; rounding.py never makes -128


@dataclass(frozen=True)
class Isa:
    """The portable row, correct on every target; subclasses override the dot product.

    Attributes:
        name: what the user and the manifest call it.
        rows: int32 lanes of an accumulator, i.e. output rows of one weight tile.
        lanes: float32 lanes of the other kernels' vectors.
        features: LLVM features that a target must have for this row.
        rows_per_block: rows of x that share a tile of quantized weights: as many as registers hold accumulators for.
        prefetch: groups of weights to ask for ahead of the one in work, by more than two rows: up to two read as fast
            as the hardware brings what it guesses. 0 where it was not seen to help.
        pair_shifts: whether several rows' weights are shifted in pairs of bytes, which blocks.py tells of.
    """

    name: str = "portable"
    rows: int = 8
    lanes: int = 8
    features: tuple[str, ...] = ()
    rows_per_block: int = 2
    prefetch: int = 0
    pair_shifts: bool = False

    def centre(self, fmt: GroupFormat) -> int:
        """What `dot` subtracts from each weight. It is not the format's own offset: 8 bits less 127 do not fit int8,
        less 128 they do. The caller makes up the difference by the activations' sum."""
        return 0

    def acc_dtype(self, fmt: GroupFormat) -> str:
        """Accumulator of one group, `acc_lanes` lanes."""
        return "int32"

    def acc_lanes(self, fmt: GroupFormat) -> int:
        return self.rows

    def dot(self, fmt: GroupFormat, acc: Any, weights: Any, activations: Any) -> Any:
        """acc + sum over i in 0..3 of (weights[4r + i] - centre) * activations[i] for each row r.

        weights: uint8 x 4 rows, `activations`: 4 int8 in an int32.
        """
        lanes = 4 * self.rows
        product = scratch(lanes, "int32")
        signed = T.reinterpret(full(activations, self.rows), dtype=f"int8x{lanes}")
        put(product, T.cast(weights, f"int32x{lanes}") * T.cast(signed, f"int32x{lanes}"), 0, lanes=lanes)
        for i in range(4):
            acc = acc + vec(product, i, lanes=self.rows, stride=4)
        return acc

    def total(self, fmt: GroupFormat, acc: Any) -> Any:
        """The group's accumulator as int32 x rows."""
        return acc

    def zero(self, fmt: GroupFormat) -> Any:
        make = T.int16 if self.acc_dtype(fmt) == "int16" else T.int32
        return full(make(0), self.acc_lanes(fmt))


def _intrinsic(name: str, dtype: str, *args: Any) -> Any:
    return T.call_llvm_pure_intrin(T.uint32(llvm_lookup_intrinsic_id(name)), *args, dtype=dtype)


@dataclass(frozen=True)
class Avx2(Isa):
    """x86-64-v3. pmaddubsw sums pairs of products in 16 bits, and would cut off what does not fit. 3- and 4-bit weights
    are summed there over a whole group: 15 x 127 x 2 x 8 steps = 30480, 7 x 127 x 2 x 10 = 17780. Of 8-bit weights not
    even a pair fits, so they are moved to -128 … 127 and multiplied by size: 128 x 127 x 2 = 32512."""

    name: str = "avx2"
    features: tuple[str, ...] = ("avx2", "fma", "f16c")
    rows_per_block: int = 4

    def centre(self, fmt: GroupFormat) -> int:
        return 128 if fmt.bits == 8 else 0

    def acc_dtype(self, fmt: GroupFormat) -> str:
        largest = ((1 << fmt.bits) - 1) * MAX_ACTIVATION * 2 * steps(fmt)
        return "int16" if largest < 1 << 15 else "int32"

    def acc_lanes(self, fmt: GroupFormat) -> int:
        return self.rows if self.acc_dtype(fmt) == "int32" else 2 * self.rows

    def dot(self, fmt: GroupFormat, acc: Any, weights: Any, activations: Any) -> Any:
        signed = T.reinterpret(full(activations, 8), dtype="int8x32")
        if fmt.bits == 8:
            centred = T.cast(weights - full(T.uint8(128), 32), "int8x32")
            signed = _intrinsic("llvm.x86.avx2.psign.b", "int8x32", signed, centred)
            # The size of -128 is -128 again, which pmaddubsw reads as the 128 that it is.
            weights = T.cast(T.max(centred, full(T.int8(0), 32) - centred), "uint8x32")
        pairs = _intrinsic("llvm.x86.avx2.pmadd.ub.sw", "int16x16", weights, signed)
        return acc + (pairs if self.acc_dtype(fmt) == "int16" else self._widen(pairs))

    def total(self, fmt: GroupFormat, acc: Any) -> Any:
        return acc if self.acc_dtype(fmt) == "int32" else self._widen(acc)

    @staticmethod
    def _widen(pairs: Any) -> Any:
        return _intrinsic("llvm.x86.avx2.pmadd.wd", "int32x8", pairs, full(T.int16(1), 16))


@dataclass(frozen=True)
class Avx512Vnni(Isa):
    """x86 with AVX-512 VNNI: one vpdpbusd per step, 16 rows per tile, no saturation."""

    name: str = "avx512-vnni"
    rows: int = 16
    lanes: int = 16
    features: tuple[str, ...] = ("avx512f", "avx512bw", "avx512vl", "avx512vnni")
    rows_per_block: int = 8
    prefetch: int = 48
    pair_shifts: bool = True

    def dot(self, fmt: GroupFormat, acc: Any, weights: Any, activations: Any) -> Any:
        signed = T.reinterpret(full(activations, 16), dtype="int8x64")
        return _intrinsic(
            "llvm.x86.avx512.vpdpbusd.512", "int32x16", acc, T.reinterpret(weights, dtype="int8x64"), signed
        )


@dataclass(frozen=True)
class NeonDotprod(Isa):
    """AArch64 with dotprod: sdot on 4 rows per tile. Its weights are signed, which 8-bit ones become by -128."""

    name: str = "neon-dotprod"
    rows: int = 4
    lanes: int = 4
    features: tuple[str, ...] = ("neon", "dotprod")

    def centre(self, fmt: GroupFormat) -> int:
        return 128 if fmt.bits == 8 else 0

    def dot(self, fmt: GroupFormat, acc: Any, weights: Any, activations: Any) -> Any:
        if centre := self.centre(fmt):
            weights = weights - full(T.uint8(centre), 16)
        signed = T.reinterpret(full(activations, 4), dtype="int8x16")
        weights = T.reinterpret(weights, dtype="int8x16")
        return _intrinsic("llvm.aarch64.neon.sdot.v4i32.v16i8", "int32x4", acc, weights, signed)


ISAS: tuple[Isa, ...] = (Avx512Vnni(), Avx2(), NeonDotprod(), Isa())
"""Best first; the last one runs anywhere."""


def choose(features: frozenset[str]) -> Isa:
    """The best row whose LLVM features are all there."""
    return next(isa for isa in ISAS if features.issuperset(isa.features))


def by_name(name: str) -> Isa:
    return next(isa for isa in ISAS if isa.name == name)
