"""A GGUF file's tensors as a Hugging Face checkpoint has them: names, and the order of rows that llama.cpp changed.

A view is rows of one tensor of the file, or of several that are stacked. Rows of blocks are gathered without decoding,
so a grid of integers is taken over in any order of rows; tensors that are transposed or shifted are read as floats.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ....errors import CheckpointError
from .architectures import Architecture
from .file import GGUFFile, GGUFTensor
from .rotary import FREQUENCIES, LONG, SHORT

RowMap = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]]
Floats = npt.NDArray[np.float32]

_LAYER_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_QKV = ("attn_q", "attn_k", "attn_v")
# Rows nearer than this are read with what lies between them.
_GAP = 64


@dataclass(frozen=True)
class View:
    """A tensor by its name in Hugging Face's library.

    Attributes:
        parts: tensors of the file that are stacked, row upon row.
        shape: as the checkpoint has it.
        order: rows of the view → rows of the stack.
        row: the view is this row of a matrix.
        shift: what is taken off, since the file has it added.
        transposed: the file has [out, in] for the view's [in, out].
        constant: the values, if the file has them as metadata.
    """

    parts: tuple[GGUFTensor, ...]
    shape: tuple[int, ...]
    order: RowMap | None = None
    row: int | None = None
    shift: float = 0.0
    transposed: bool = False
    constant: Floats | None = None

    @property
    def is_vector(self) -> bool:
        return len(self.shape) < 2

    @property
    def types(self) -> set[str]:
        return {part.type.name for part in self.parts}

    @property
    def nbytes(self) -> int:
        if self.constant is not None:
            return self.constant.nbytes
        values = sum(part.rows * part.shape[-1] for part in self.parts)
        return sum(part.rows * part.row_bytes for part in self.parts) * math.prod(self.shape) // values

    def floats(self, file: GGUFFile, start: int, stop: int) -> Floats:
        """Rows [start, stop) in float32; of a vector as many rows of one value."""
        if self.constant is not None:
            return self.constant.reshape(-1, 1)[start:stop]
        if self.is_vector:
            values = self._vector(file)
            rows = np.arange(start, stop)
            values = values[rows if self.order is None else self.order(rows)].reshape(-1, 1)
        elif self.transposed:
            values = np.ascontiguousarray(_transpose(file, self.parts[0])[start:stop])
        else:
            values = self._gather(
                file, start, stop, self.shape[-1], np.float32, lambda part, data, n: part.type.read(data, n)
            )
        return values - np.float32(self.shift) if self.shift else values

    def blocks(self, file: GGUFFile, start: int, stop: int) -> bytes:
        """The bytes of rows [start, stop) of a matrix, whose parts are of one type."""
        width = self.parts[0].row_bytes
        gathered = self._gather(
            file, start, stop, width, np.uint8, lambda part, data, n: np.frombuffer(data, np.uint8).reshape(n, width)
        )
        return gathered.tobytes()

    def _gather(
        self,
        file: GGUFFile,
        start: int,
        stop: int,
        width: int,
        dtype: Any,
        read: Callable[[GGUFTensor, bytes, int], Any],
    ) -> npt.NDArray[Any]:
        """Rows [start, stop) as `read` makes them of runs of the file's rows."""
        rows = np.arange(start, stop)
        rows = rows if self.order is None else self.order(rows)
        out, first = np.empty((len(rows), width), dtype), 0
        for part in self.parts:
            inside = np.flatnonzero((rows >= first) & (rows < first + part.rows))
            wanted = rows[inside] - first
            for run in _runs(wanted):
                low, high = int(wanted[run].min()), int(wanted[run].max()) + 1
                out[inside[run]] = read(part, file.read(part, low, high), high - low)[wanted[run] - low]
            first += part.rows
        return out

    def _vector(self, file: GGUFFile) -> Floats:
        """All values of the stack; or of one row of a matrix."""
        first = 0 if self.row is None else self.row
        return np.concatenate([part.type.read(file.read(part, first, first + 1), 1)[0] for part in self.parts])


@lru_cache(maxsize=1)  # which is asked for block after block
def _transpose(file: GGUFFile, part: GGUFTensor) -> Floats:
    return np.asarray(part.type.read(file.read(part, 0, part.rows), part.rows).T)


def _runs(rows: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """Places of rows that lie near each other, and so are read at once."""
    if not len(rows):
        return []
    places = np.argsort(rows, kind="stable")
    return np.split(places, np.flatnonzero(np.diff(rows[places]) > _GAP) + 1)


def views(file: GGUFFile, row: Architecture, config: Mapping[str, Any]) -> dict[str, View]:
    """All tensors by Hugging Face's names. One that has none keeps its own, and is complained of when it is not used.

    Raises CheckpointError for metadata that contradicts the tensors.
    """
    return _Views(file, row, config).all()


class _Views:
    def __init__(self, file: GGUFFile, row: Architecture, config: Mapping[str, Any]) -> None:
        self.file, self.row = file, row

        def size(name: str, default: int = 0) -> int:
            return int(config.get(row.renamed.get(name, name), default))

        self.layers, self.heads = size("num_hidden_layers"), size("num_attention_heads")
        self.kv_heads = size("num_key_value_heads", self.heads)
        self.head_dim = size("head_dim", size("hidden_size") // self.heads)
        self.widths = [count * self.head_dim for count in (self.heads, self.kv_heads, self.kv_heads)]

    def all(self) -> dict[str, View]:
        found: dict[str, View] = {}
        for name, tensor in self.file.tensors.items():
            if name not in (FREQUENCIES, LONG, SHORT):
                named = self._named(name, tensor)
                if twice := found.keys() & named.keys():
                    raise CheckpointError(f"{self.file.path} holds {min(twice)} twice, once in {name}.")
                found |= named
        for part, (key, shape) in self.row.constants.items():
            values = self._constants(key)
            for layer in range(self.layers):
                constant = np.full(shape, values[layer], np.float32)
                found[f"{self.row.prefix}.{layer}.{part}"] = View((), shape, constant=constant)
        return found

    def _named(self, name: str, tensor: GGUFTensor) -> dict[str, View]:
        if not (match := _LAYER_NAME.fullmatch(name)):
            stem, _, kind = name.rpartition(".")
            return {f"{self.row.top[stem]}.{kind}" if stem in self.row.top else name: self._plain(stem, tensor)}
        layer, part, kind = match.groups()
        if part in self.row.layer:
            where = f"{self.row.prefix}.{layer}.{self.row.layer[part]}"
            if part in self.row.per_head and len(tensor.shape) == 2:
                width = tensor.shape[1:]
                return {f"{where}.{h}.{kind}": View((tensor,), width, row=h) for h in range(tensor.shape[0])}
            return {f"{where}.{kind}": self._plain(part, tensor)}
        if part == "attn_qkv":
            return self._apart(layer, kind, tensor)
        if part in _QKV and "attn_qkv" in self.row.layer:
            return self._stacked(layer, kind) if part == _QKV[0] else {}
        return {name: self._plain(part, tensor)}

    def _plain(self, part: str, tensor: GGUFTensor) -> View:
        norm = part.endswith("norm") and tensor.name.endswith(".weight")
        transposed = part in self.row.transposed and len(tensor.shape) == 2
        return View(
            (tensor,),
            tensor.shape[::-1] if transposed else tensor.shape,
            order=self._order(part, tensor),
            shift=self.row.shift if norm else 0.0,
            transposed=transposed,
        )

    def _order(self, part: str, tensor: GGUFTensor | None = None) -> RowMap | None:
        """The order of a part's rows, of which `tensor`, if it is that part, must have as many as the heads make."""
        order, rows = None, 0
        if self.row.rotated and part in _QKV[:2]:
            order, rows = partial(_halves, half=self.head_dim // 2), self.widths[_QKV.index(part)]
        elif self.row.grouped and part == "attn_qkv":
            if self.heads % self.kv_heads:
                raise CheckpointError(f"{self.file.path}: {self.heads} heads are no multiple of {self.kv_heads}.")
            order, rows = (
                partial(_groups, heads=self.heads, kv_heads=self.kv_heads, dim=self.head_dim),
                sum(self.widths),
            )
        if order is not None and tensor is not None and tensor.shape[0] != rows:
            raise CheckpointError(f"{self.file.path}: {tensor.name} has {tensor.shape[0]} rows, not {rows}.")
        return order

    def _apart(self, layer: str, kind: str, tensor: GGUFTensor) -> dict[str, View]:
        """q, k and v of a file that has them in one tensor, for a checkpoint that has them apart."""
        if tensor.shape[0] != sum(self.widths):
            raise CheckpointError(
                f"{self.file.path}: {tensor.name} has {tensor.shape[0]} rows, not {sum(self.widths)}."
            )
        found, first = {}, 0
        for part, width in zip(_QKV, self.widths, strict=True):
            order = partial(_after, first=first, inner=self._order(part))
            name = f"{self.row.prefix}.{layer}.{self.row.layer[part]}.{kind}"
            found[name] = View((tensor,), (width, *tensor.shape[1:]), order=order)
            first += width
        return found

    def _stacked(self, layer: str, kind: str) -> dict[str, View]:
        """The other way around."""
        names = [f"blk.{layer}.{part}.{kind}" for part in _QKV]
        if missing := [name for name in names if name not in self.file.tensors]:
            raise CheckpointError(f"{self.file.path} has no tensor {missing[0]}.")
        parts = tuple(self.file.tensors[name] for name in names)
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        order = self._order("attn_qkv")
        return {f"{self.row.prefix}.{layer}.{self.row.layer['attn_qkv']}.{kind}": View(parts, shape, order=order)}

    def _constants(self, key: str) -> list[float]:
        value = self.file.metadata.get(key)
        values: list[Any] = value if isinstance(value, list) else [value] * self.layers
        if len(values) < self.layers or not all(isinstance(v, float) for v in values):
            raise CheckpointError(f"{self.file.path}: {key} must hold a number for each of {self.layers} layers.")
        return values


def _halves(rows: npt.NDArray[np.int64], half: int) -> npt.NDArray[np.int64]:
    """Where rows of heads of two halves lie in a file in which those that turn together are neighbours."""
    head, within = np.divmod(rows, 2 * half)
    return np.asarray(head * 2 * half + 2 * (within % half) + within // half)


def _groups(rows: npt.NDArray[np.int64], heads: int, kv_heads: int, dim: int) -> npt.NDArray[np.int64]:
    """Where rows that lie by groups, each of its queries' heads, a key and a value, lie in a file that has all queries,
    then all keys, then all values."""
    per_group = heads // kv_heads
    group, within = np.divmod(rows, (per_group + 2) * dim)
    kind = np.maximum(within // dim - per_group + 1, 0)  # 0 for queries, 1 for the key, 2 for the value
    query = group * per_group * dim + within
    other = (heads + (kind - 1) * kv_heads + group) * dim + within % dim
    return np.where(kind == 0, query, other)


def _after(rows: npt.NDArray[np.int64], first: int, inner: RowMap | None) -> npt.NDArray[np.int64]:
    return first + (rows if inner is None else inner(rows))
