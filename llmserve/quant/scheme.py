"""Quantization schemes: which storage each weight gets, and the one function that applies a scheme to a model.

A scheme sees only weight matrices (`out_features`, `in_features`, `has_bias`, `bind`) and knows no family and no
platform: the platform's kernel set says how the chosen storage lies in its memory.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ..errors import UnsupportedError
from ..kernels.base import KernelSet, Storage, Weight
from .group import INT3, INT3_X40, INT4, INT8, GroupFormat


@dataclass(frozen=True)
class Scheme:
    """A row. The storage of `f16` and `f32` twins is the same; they differ in the dtype that the model computes in.

    Attributes:
        name: MLC's name where the packed layout is MLC's.
        storage: of every weight matrix; norms and biases stay float32.
        compute_dtype: of activations.
    """

    name: str
    storage: Storage
    compute_dtype: str

    @property
    def page_dtype(self) -> str:
        """Of keys and values: float16, but float32 where the user asked for no rounding anywhere."""
        return "float32" if self.storage == "float32" else "float16"

    @property
    def storage_name(self) -> str:
        return self.storage.name if isinstance(self.storage, GroupFormat) else self.storage


SCHEMES: Mapping[str, Scheme] = {
    row.name: row
    for row in (
        Scheme("q4f16_1", INT4, "float16"),
        Scheme("q4f32_1", INT4, "float32"),
        Scheme("q3f16_g32", INT3, "float16"),
        Scheme("q3f32_g32", INT3, "float32"),
        Scheme("q3f16_1", INT3_X40, "float16"),
        Scheme("q3f32_1", INT3_X40, "float32"),
        Scheme("q8f16_1", INT8, "float16"),
        Scheme("q8f32_1", INT8, "float32"),
        Scheme("f16", "float16", "float16"),
        Scheme("f32", "float32", "float32"),
    )
}
# What `--quant` takes beside full names → the name's pattern, by compute dtype.
SHORT_NAMES = {"q4": "q4{}_1", "q3": "q3{}_g32", "q8": "q8{}_1", "none": "{}"}


def choose(name: str, compute_dtype: str, unquantized: str) -> Scheme:
    """The scheme for `--quant name` on a platform that computes in `compute_dtype`.

    Short names pick the platform's variant. A full name of the other variant keeps its storage and computes as the
    platform does. Raises UnsupportedError with what there is.
    """
    if name == "none":
        name = unquantized
    elif name in SHORT_NAMES:
        name = SHORT_NAMES[name].format(compute_dtype.replace("float", "f"))
    if name not in SCHEMES:
        known = [*SHORT_NAMES, *SCHEMES]
        close = difflib.get_close_matches(name, known, 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise UnsupportedError(f"There is no quantization {name!r}{hint}; there are {', '.join(known)}.")
    scheme = SCHEMES[name]
    if scheme.compute_dtype == compute_dtype or not isinstance(scheme.storage, GroupFormat):
        return Scheme(scheme.name, scheme.storage, compute_dtype)
    return next(s for s in SCHEMES.values() if s.storage == scheme.storage and s.compute_dtype == compute_dtype)


class Matrix(Protocol):
    """What a scheme sees of a module (models.layers.Matrix, without importing it)."""

    out_features: int
    in_features: int
    has_bias: bool

    def bind(self, weight: Weight) -> None: ...


def apply(matrices: Iterable[tuple[str, Matrix]], scheme: Scheme, kernels: KernelSet) -> None:
    """Give every weight matrix, by name, its parameters in the kernel set's layout."""
    for _, matrix in matrices:
        matrix.bind(kernels.weight(matrix.out_features, matrix.in_features, scheme.storage, matrix.has_bias))
