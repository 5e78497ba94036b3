"""The storage of each matrix of a model that was quantized elsewhere: its own grid where one of our formats holds it.

Without `--quant`, nothing is rounded to fewer bits than its maker chose; floats beside quantized weights (embeddings
and heads, mostly) are stored in 8 bits. `--quant` is the storage of all that must be rounded, and an upper bound for
the rest: grids of as many bits or fewer are taken over, larger ones are rounded again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..quant.group import INT8, GroupFormat, Storage
from ..quant.scheme import SCHEMES, Matrix, Scheme, storage_name
from ..quant.takeover import widest
from ..weights.mapping import Rule, map_weights
from ..weights.source import Packed, Source


@dataclass(frozen=True)
class _Adopted:
    """A matrix's storage, and the figures that are reported of it."""

    name: str
    weights: int
    file_bytes: int
    storage: Storage
    reason: str  # why its weights are rounded; empty if they are taken over

    @property
    def bits(self) -> float:
        """Of a weight in our storage, scales and zero points included."""
        if not isinstance(self.storage, GroupFormat):
            return 32.0 if self.storage == "float32" else 16.0
        group = self.storage.group_size
        return 8 * self.storage.nbytes(1, group) / group


def adopt(
    matrices: Iterable[tuple[str, Matrix]], source: Source, rules: Sequence[Rule], wanted: Scheme, explicit: bool
) -> tuple[Scheme, str]:
    """(the scheme with every matrix's storage, a report in one or two sentences).

    `wanted` is the scheme that the user named if `explicit`, else the default, of which only the platform's dtype
    counts. Raises CheckpointError where a matrix is missing or its tensors contradict each other.
    """
    sizes = {f"{name}.weight": (name, matrix) for name, matrix in matrices}
    rows, any_packed = [], False
    for mapped in map_weights(sizes, source.names(), rules, ignore=("*",)):
        name, matrix = sizes[mapped.name]
        packs = [source.packed(tensor) for tensor in mapped.sources]
        any_packed |= any(packs)
        storage, reason = _storage(packs, wanted.storage if explicit else None)
        nbytes = sum(map(source.nbytes, mapped.sources))
        rows.append(_Adopted(name, matrix.out_features * matrix.in_features, nbytes, storage, reason))
    if not any_packed:
        return wanted, ""
    weights: Counter[Storage] = Counter()
    for row in rows:
        weights[row.storage] += row.weights
    main = wanted.storage if explicit and not isinstance(wanted.storage, GroupFormat) else weights.most_common(1)[0][0]
    overrides = {row.name: row.storage for row in rows if row.storage != main}
    names = (s.name for s in SCHEMES.values() if s.storage == main and s.compute_dtype == wanted.compute_dtype)
    name = source.kind if overrides else next(names, wanted.name if main == wanted.storage else source.kind)
    return Scheme(name, main, wanted.compute_dtype, overrides), _note(rows)


def _storage(packs: list[Packed | None], wanted: Storage | None) -> tuple[Storage, str]:
    """(a matrix's storage, from the formats of its tensors; the reason why it is rounded, or "")."""
    if wanted is not None and not isinstance(wanted, GroupFormat):
        return wanted, "as asked"
    found = widest(pack.format if pack else INT8 for pack in packs)
    reasons = (pack.reason if pack else "the file has floats there" for pack in packs)
    reason = next(filter(None, reasons), "")
    if not reason and found is None:
        reason = "groups of different sizes meet in it"
    if not reason and found and (wanted is None or found.bits <= wanted.bits):
        return found, ""
    if wanted is not None:
        return wanted, reason or "as asked"
    if found is None or found.zero_point:  # which is no format to round to
        return INT8, reason
    return found, reason


def _note(rows: list[_Adopted]) -> str:
    said = []
    kept = [row for row in rows if not row.reason]
    if kept:
        weights = sum(row.weights for row in kept)
        ours = sum(row.weights * row.bits for row in kept) / weights
        theirs = 8 * sum(row.file_bytes for row in kept) / weights
        formats = ", ".join(sorted({storage_name(row.storage) for row in kept}))
        said.append(
            f"{len(kept)} of {len(rows)} matrices taken over as they were quantized "
            f"({formats}: {ours:.2f} bits a weight, {theirs:.2f} in the file)"
        )
    rounded = Counter((storage_name(row.storage), row.reason) for row in rows if row.reason)
    for (storage, reason), count in rounded.most_common():
        cause = reason if reason == "as asked" else f"because {reason}"
        said.append(f"{count} {'matrices' if count > 1 else 'matrix'} stored as {storage} {cause}")
    return "; ".join(said) + "."
