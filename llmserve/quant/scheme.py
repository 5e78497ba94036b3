"""Quantization schemes: the storage of each weight, and the one function that applies a scheme to a model.

A scheme sees only weight matrices (`out_features`, `in_features`, `has_bias`, `bind`) and knows no family and no
platform: the platform's kernel set defines the memory layout of the chosen storage.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ..errors import ArtifactError, UnsupportedError
from .group import ALL_FORMATS, INT3, INT3_X40, INT4, INT8, GroupFormat, Storage


@dataclass(frozen=True)
class Scheme:
    """A row. The storage of `f16` and `f32` twins is the same; they differ in the dtype that the model computes in.

    Attributes:
        name: MLC's name where the packed layout is MLC's.
        storage: of every weight matrix; norms and biases stay float32.
        compute_dtype: of activations.
        overrides: storage of the matrices, by name, that differ from the rest.
    """

    name: str
    storage: Storage
    compute_dtype: str
    overrides: Mapping[str, Storage] = field(default_factory=dict, hash=False)

    def storage_of(self, matrix: str) -> Storage:
        return self.overrides.get(matrix, self.storage)

    @property
    def page_dtype(self) -> str:
        """Of keys and values: float16, but float32 where the user asked for no rounding anywhere."""
        return "float32" if self.storage == "float32" else "float16"

    @property
    def stored(self) -> dict[str, Any]:
        """A manifest's entries on weights in this scheme, as JSON; `restored` reads them."""
        overrides = {name: storage_name(storage) for name, storage in sorted(self.overrides.items())}
        return {"scheme": self.name, "storage": storage_name(self.storage), "overrides": overrides}


def storage_name(storage: Storage) -> str:
    return storage.name if isinstance(storage, GroupFormat) else storage


def storage_named(name: str) -> Storage:
    """The inverse of `storage_name`. Raises ArtifactError for a name that is none."""
    if name in ALL_FORMATS:
        return ALL_FORMATS[name]
    if name not in ("float32", "float16"):
        raise ArtifactError(f"Weights stored as {name!r} are unknown to this version; convert the checkpoint again.")
    return name


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


def choose(name: str, compute_dtype: str) -> Scheme:
    """The scheme for `--quant name` on a platform that computes in `compute_dtype`.

    Short names pick the variant of that dtype. A full name of the other variant keeps its storage and computes as the
    platform does. Raises UnsupportedError with what there is.
    """
    if name in SHORT_NAMES:
        name = SHORT_NAMES[name].format(compute_dtype.replace("float", "f"))
    if name not in SCHEMES:
        known = [*SHORT_NAMES, *SCHEMES]
        close = difflib.get_close_matches(name, known, 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise UnsupportedError(f"There is no quantization {name!r}{hint}; there are {', '.join(known)}.")
    scheme = SCHEMES[name]
    if scheme.compute_dtype == compute_dtype or not isinstance(scheme.storage, GroupFormat):
        return replace(scheme, compute_dtype=compute_dtype)
    return next(s for s in SCHEMES.values() if s.storage == scheme.storage and s.compute_dtype == compute_dtype)


def restored(stored: Mapping[str, Any], compute_dtype: str) -> Scheme:
    """The scheme of weights that were converted before, from what `Scheme.stored` put into their manifest.

    Raises ArtifactError for a storage that this version does not know.
    """
    storage = storage_named(stored["storage"])
    overrides = {name: storage_named(own) for name, own in stored["overrides"].items()}
    row = SCHEMES.get(stored["scheme"])
    if row and row.storage == storage and not overrides:
        return choose(stored["scheme"], compute_dtype)
    return Scheme(stored["scheme"], storage, compute_dtype, overrides)


def mixed(name: str, formats: Mapping[str, GroupFormat], compute_dtype: str) -> Scheme:
    """The scheme that stores each matrix in a format of its own."""
    common = Counter(formats.values()).most_common(1)[0][0]
    return Scheme(name, common, compute_dtype, {name: fmt for name, fmt in formats.items() if fmt != common})


class Matrix(Protocol):
    """A weight matrix as a scheme sees it (models.parts.Matrix, without importing it)."""

    out_features: int
    in_features: int
    has_bias: bool

    def bind(self, weight: Any) -> None: ...


class Layouts(Protocol):
    """A platform's kernels as a scheme sees them (kernels.base.KernelSet, without importing it)."""

    def weight(self, out_features: int, in_features: int, storage: Storage, bias: bool) -> Any:
        """A weight in the platform's memory layout, for `Matrix.bind`."""


def apply(matrices: Iterable[tuple[str, Matrix]], scheme: Scheme, kernels: Layouts) -> None:
    """Give every weight matrix, by name, its parameters in the kernel set's layout.

    Raises ArtifactError when the scheme overrides the storage of a matrix that is not among them.
    """
    left = set(scheme.overrides)
    for name, matrix in matrices:
        storage = scheme.storage_of(name)
        matrix.bind(kernels.weight(matrix.out_features, matrix.in_features, storage, matrix.has_bias))
        left.discard(name)
    if left:
        raise ArtifactError(f"The weights are said to store {min(left)} in a way of its own, and the model has none.")
