"""Matrix units: products of small tiles by a whole warp, as CUDA (wmma) and Metal (simdgroup) program them.

Operands are float16 and lie in shared memory, sums are float32 and stay in the warp's registers; a tile is square.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from ..tir import T, f32

_OPERAND, _SUM = "float16", "float32"


class Fragments(Protocol):
    """Tiles in a warp's registers."""

    def clear(self, index: int) -> None: ...

    def load(self, index: int, source: Any, at: Any, stride: int, transposed: bool = False) -> None:
        """From the element `at` of a flat shared buffer, rows (or columns, if transposed) `stride` apart."""

    def store(self, index: int, target: Any, at: Any, stride: int) -> None: ...


class MatrixUnits(Protocol):
    @property
    def size(self) -> int: ...

    def left(self, count: int) -> Fragments: ...

    def right(self, count: int) -> Fragments: ...

    def sums(self, count: int) -> Fragments: ...

    def multiply_add(self, sums: Any, c: int, left: Any, a: int, right: Any, b: int) -> None:
        """sums[c] += left[a] · right[b]."""


@dataclass(frozen=True)
class _WmmaFragments:
    buffer: Any
    size: int

    def clear(self, index: int) -> None:
        T.evaluate(T.tvm_fill_fragment(self.buffer.data, *[self.size] * 3, index, f32(0)))

    def load(self, index: int, source: Any, at: Any, stride: int, transposed: bool = False) -> None:
        order = "col_major" if transposed else "row_major"
        shape = [self.size] * 3
        T.evaluate(
            T.tvm_load_matrix_sync(self.buffer.data, *shape, index, source.access_ptr("r", offset=at), stride, order)
        )

    def store(self, index: int, target: Any, at: Any, stride: int) -> None:
        shape = [self.size] * 3
        T.evaluate(
            T.tvm_store_matrix_sync(
                self.buffer.data, *shape, index, target.access_ptr("w", offset=at), stride, "row_major"
            )
        )


@dataclass(frozen=True)
class Wmma:
    """NVIDIA's tensor cores through CUDA's warp matrix functions: tiles of 16, from compute capability 7.0 on."""

    size: int = 16

    def _fragments(self, count: int, dtype: str, scope: str) -> _WmmaFragments:
        shape = (count * self.size * self.size,)
        return _WmmaFragments(T.sblock_alloc_buffer(shape, dtype, scope=f"wmma.{scope}"), self.size)

    def left(self, count: int) -> _WmmaFragments:
        return self._fragments(count, _OPERAND, "matrix_a")

    def right(self, count: int) -> _WmmaFragments:
        return self._fragments(count, _OPERAND, "matrix_b")

    def sums(self, count: int) -> _WmmaFragments:
        return self._fragments(count, _SUM, "accumulator")

    def multiply_add(self, sums: Any, c: int, left: Any, a: int, right: Any, b: int) -> None:
        d = sums.buffer.data
        T.evaluate(T.tvm_mma_sync(d, c, left.buffer.data, a, right.buffer.data, b, d, c))


@dataclass(frozen=True)
class _SimdgroupFragments:
    buffer: Any
    size: int

    def clear(self, index: int) -> None:
        T.evaluate(T.metal.make_filled_simdgroup_matrix(self.buffer.data, index, f32(0), self.size, self.size))

    def load(self, index: int, source: Any, at: Any, stride: int, transposed: bool = False) -> None:
        pointer = source.access_ptr("r", offset=at)
        size = self.size
        T.evaluate(T.metal.simdgroup_load(self.buffer.data, index, pointer, stride, size, size, transposed))

    def store(self, index: int, target: Any, at: Any, stride: int) -> None:
        pointer = target.access_ptr("w", offset=at)
        T.evaluate(T.metal.simdgroup_store(self.buffer.data, index, pointer, stride, self.size, self.size, False))


@dataclass(frozen=True)
class Simdgroup:
    """Apple's simdgroup matrices: tiles of 8, from M1 on."""

    size: int = 8

    def _fragments(self, count: int, dtype: str) -> _SimdgroupFragments:
        shape = (count * self.size * self.size,)
        return _SimdgroupFragments(T.sblock_alloc_buffer(shape, dtype, scope="metal.simdgroup"), self.size)

    def left(self, count: int) -> _SimdgroupFragments:
        return self._fragments(count, _OPERAND)

    right = left

    def sums(self, count: int) -> _SimdgroupFragments:
        return self._fragments(count, _SUM)

    def multiply_add(self, sums: Any, c: int, left: Any, a: int, right: Any, b: int) -> None:
        d = sums.buffer.data
        T.evaluate(T.metal.simdgroup_multiply_accumulate(d, c, left.buffer.data, a, right.buffer.data, b, d, c))


MATRIX_UNITS: dict[str, MatrixUnits] = {"wmma": Wmma(), "simdgroup": Simdgroup()}
