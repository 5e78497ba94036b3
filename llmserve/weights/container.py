"""The safetensors container: a reader that checks the header, and a writer that streams.

The `safetensors` package is not used, because a conversion must neither hold a whole file in memory nor map it, and
because a broken download should be reported in a sentence. The format: 8 bytes of header length, a JSON header of
{name: dtype, shape, data_offsets}, then the tensors back to back without holes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError

ALIGNMENT = 64
_MAX_HEADER = 100_000_000

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "F32": np.dtype(np.float32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F64": np.dtype(np.float64),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor's name, dtype and shape."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def rows(self) -> tuple[int, int]:
        """The tensor seen as rows of its last axis: (rows, row length); a vector [N] is (N, 1)."""
        return (math.prod(self.shape[:-1]), self.shape[-1]) if len(self.shape) > 1 else (math.prod(self.shape), 1)


@dataclass(frozen=True)
class TensorInfo(TensorSpec):
    """A tensor in a file, `offset` bytes from its start."""

    file: Path
    offset: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file, checked against the file's size; no tensor data is read.

    Raises CheckpointError for a file that is missing, cut short or corrupt, naming it and the cause.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if prefix == b"version ":
                raise _Broken("it is a Git LFS pointer and not the weights (`git lfs pull` fetches those)")
            if size < 8 or not 2 <= length <= min(size - 8, _MAX_HEADER):
                raise _Broken(f"a header of {length:,} bytes does not fit its {size:,} bytes")
            text = file.read(length)
        start = 8 + length
        header = json.loads(text.decode(), object_pairs_hook=_without_duplicates)
        if not isinstance(header, dict):
            raise _Broken("its header is no JSON object")
        header.pop("__metadata__", None)
        tensors = {name: _tensor(name, entry, path, start) for name, entry in header.items()}
        _check_contiguous(tensors, start, size)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        cause = error if isinstance(error, _Broken) else "its header is not JSON"
        raise CheckpointError(f"{path} is no intact safetensors file: {cause}.") from error
    return tensors


class SafetensorsWriter:
    """Writes tensors of known shapes in any order, by rows, to a file that appears under its name when complete.

    Tensors whose sizes are whole multiples of 64 bytes come first, then those of 32, 16 …: so nearly all start on 64
    bytes, and each at least on a multiple of its item size, without the padding that the format forbids.
    A failure removes the unfinished file; a killed process leaves it under a `.partial` name.
    """

    def __init__(self, path: Path, specs: Sequence[TensorSpec], metadata: Mapping[str, str] | None = None) -> None:
        self.path = path
        self._partial = path.with_name(path.name + ".partial")
        self._specs = {spec.name: spec for spec in specs}
        if len(self._specs) != len(specs):
            raise ValueError(f"{path.name}: two tensors have the same name")
        self._missing = {spec.name: spec.nbytes for spec in specs}
        self._offsets: dict[str, int] = {}
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        end = 0
        for spec in sorted(specs, key=lambda spec: -_alignment(spec.nbytes)):
            offsets = [end, end := end + spec.nbytes]
            header[spec.name] = {"dtype": _CODES[spec.dtype], "shape": list(spec.shape), "data_offsets": offsets}
            self._offsets[spec.name] = offsets[0]
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        self._start = 8 + len(text)
        self.nbytes = self._start + end
        self._header = len(text).to_bytes(8, "little") + text

    def __enter__(self) -> SafetensorsWriter:
        self._file = self._partial.open("wb")
        self._file.write(self._header)
        return self

    def write(self, name: str, rows: npt.NDArray[Any], first: int = 0) -> None:
        """Writes whole rows (of the last axis, see TensorSpec.rows) of tensor `name`, beginning at row `first`."""
        spec = self._specs[name]
        if rows.dtype != spec.dtype:
            raise ValueError(f"{name} is {spec.dtype}, not {rows.dtype}")
        data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
        self._file.seek(self._start + self._offsets[name] + first * spec.rows[1] * spec.dtype.itemsize)
        self._file.write(data.data)
        self._missing[name] -= data.nbytes

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
            if kind is None:
                if short := {name: count for name, count in self._missing.items() if count}:
                    raise ValueError(f"{self.path.name}: not all rows were written once, bytes missing: {short}")
                os.replace(self._partial, self.path)
        finally:
            self._partial.unlink(missing_ok=True)


class _Broken(ValueError):
    """The cause of a CheckpointError, before the file's name is put to it."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        names = [name for name, _ in pairs]
        raise _Broken(f"its header names {next(n for n in names if names.count(n) > 1)} twice")
    return entries


def _tensor(name: str, entry: Any, path: Path, start: int) -> TensorInfo:
    try:
        code, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        sound = all(type(x) is int and x >= 0 for x in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise _Broken(f"the header's entry of {name} is malformed")
    if code not in DTYPES:
        raise _Broken(f"{name} has the dtype {code}, and known are {', '.join(DTYPES)}")
    info = TensorInfo(name, DTYPES[code], shape, path, start + begin)
    if end - begin != info.nbytes:
        raise _Broken(
            f"{name} is {code} {list(shape)}, {info.nbytes:,} bytes, but has offsets of {end - begin:,} bytes"
        )
    return info


def _check_contiguous(tensors: Mapping[str, TensorInfo], start: int, size: int) -> None:
    end = start
    for info in sorted(tensors.values(), key=lambda info: (info.offset, info.nbytes)):
        if info.offset != end:
            raise _Broken(f"{info.name} does not begin where the tensor before it ends")
        end += info.nbytes
    if end > size:
        raise _Broken(f"it has {size:,} bytes where its header promises {end:,} (a download cut short?)")
    if end < size:
        raise _Broken(f"{size - end:,} bytes follow its last tensor")


def _alignment(nbytes: int) -> int:
    return min(ALIGNMENT, nbytes & -nbytes) or ALIGNMENT
