"""The GGUF container: metadata and a table of tensors, each number checked against the file before it is believed.

"GGUF", version, number of tensors and of metadata entries; the entries (key, type, value; arrays of one type); the
table (name, sizes with the fastest axis first, type, offset); then, from a multiple of the alignment on, the tensors.
All numbers are little-endian. Written from the format's specification (ggml, docs/gguf.md). A model may lie in several
files, `name-00001-of-00003.gguf` …, of which the first has the metadata; any of them stands for all.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ....errors import CheckpointError, UnsupportedError
from .blocks import TYPES, BlockType

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# A vocabulary of a million tokens with its merges stays below this.
_MAX_HEADER = 256 << 20
_MAX_AXES = 4
_MAX_PARTS = 999
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor's place: `shape` with the rows' axis last, as numpy has it; `offset` from the start of `file`."""

    name: str
    type: BlockType
    shape: tuple[int, ...]
    offset: int
    file: Path

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        return self.shape[-1] // self.type.values * self.type.nbytes


@dataclass(frozen=True, eq=False)
class GGUFFile:
    """A model's file, or all of its files. `path` is the one that was named."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]

    @classmethod
    def open(cls, path: Path) -> GGUFFile:
        """Reads all but the tensors' data.

        Raises CheckpointError for a file that is cut short or broken and for a part that is missing, UnsupportedError
        for one in a version, a byte order or with a tensor type that is not read; each names file and cause.
        """
        files = parts(path)
        if missing := [file for file in files if not file.exists()]:
            raise CheckpointError(
                f"{path} is one of {len(files)} parts of a model, and {missing[0].name} is missing beside it; "
                f"put all parts into {path.parent}."
            )
        opened = [_open(file) for file in files]
        metadata = opened[0].metadata
        tensors: dict[str, GGUFTensor] = {}
        count = metadata.get("split.count", 0)
        if count not in (0, 1) and count != len(files):
            raise CheckpointError(
                f"{path} is one of {count!r:.20} parts of a model, which are found by names such as "
                "model-00001-of-00003.gguf; give them their names again."
            )
        for number, part in enumerate(opened):
            if len(opened) > 1 and part.metadata.get("split.no", number) != number:
                raise CheckpointError(
                    f"{part.path} says that it is part {part.metadata['split.no'] + 1!r:.20} of the model."
                )
            if twice := tensors.keys() & part.tensors.keys():
                raise CheckpointError(f"{part.path} holds {min(twice)}, which another part of the model holds as well.")
            tensors |= part.tensors
        total = metadata.get("split.tensors.count", len(tensors))
        if total != len(tensors):
            raise CheckpointError(f"{path}: the model's parts hold {len(tensors)} tensors of {total!r:.20}.")
        return cls(path, metadata, tensors)

    def read(self, tensor: GGUFTensor, start: int, stop: int) -> bytes:
        """The bytes of rows [start, stop). Raises CheckpointError where the file has become shorter."""
        size = (stop - start) * tensor.row_bytes
        try:
            with tensor.file.open("rb") as file:
                file.seek(tensor.offset + start * tensor.row_bytes)
                data = file.read(size)
        except OSError as error:
            raise CheckpointError(f"{tensor.file} cannot be read ({error.strerror}).") from error
        if len(data) != size:
            raise CheckpointError(f"{tensor.file} ended in the middle of {tensor.name}.")
        return data


def parts(path: Path) -> list[Path]:
    """All files of a model of which one is named, in their order; they need not be there."""
    match = _PART.fullmatch(path.name)
    count = int(match["count"]) if match else 1
    if match is None or not 1 <= int(match["number"]) <= count <= _MAX_PARTS:
        return [path]
    return [path.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]


def whole(files: Sequence[Path]) -> list[Path]:
    """One file for each model among these, the first where it lies in several."""
    return list(dict.fromkeys(parts(file)[0] for file in files))


def _open(path: Path) -> GGUFFile:
    try:
        with path.open("rb") as file:
            return _read(path, _Cursor(file, os.fstat(file.fileno()).st_size))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}).") from error
    except _Broken as error:
        raise CheckpointError(f"{path} is no intact GGUF file: {error}.") from error


class _Broken(ValueError):
    """The cause of a CheckpointError, before the file's name is put to it."""


class _Cursor:
    """Reads a file's beginning forwards, and never more than it has."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.at = file, size, 0

    def take(self, count: int) -> bytes:
        if count > self.size - self.at:
            raise _Broken(f"{count:,} bytes are promised at byte {self.at:,} of {self.size:,} (a download cut short?)")
        if self.at + count > _MAX_HEADER:
            raise _Broken(f"its metadata is larger than {_MAX_HEADER >> 20} MiB")
        self.at += count
        return self.file.read(count)

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def count(self, least: int) -> int:
        """A number of things that take at least so many bytes each."""
        found: int = self.number("Q")
        if found * least > self.size - self.at:
            raise _Broken(
                f"{found:,} entries are promised at byte {self.at:,} of {self.size:,} (a download cut short?)"
            )
        return found

    def text(self) -> str:
        return self.take(self.count(1)).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise _Broken(f"a metadata value has the unknown type {kind}")
        element = self.number("I")
        if element in _SCALARS:
            code = _SCALARS[element]
            count = self.count(struct.calcsize(f"<{code}"))
            return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(f"<{code}"))))
        if element != _STRING:
            raise _Broken(f"a metadata array has elements of the unknown type {element}")
        return [self.text() for _ in range(self.count(8))]


def _read(path: Path, cursor: _Cursor) -> GGUFFile:
    if cursor.take(min(4, cursor.size)) != MAGIC:
        raise _Broken("it does not begin with GGUF")
    version = cursor.number("I")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
        kind = "with big-endian numbers" if swapped else f"in version {version}"
        raise UnsupportedError(f"{path} is a GGUF file {kind}; versions 2 and 3 are read, little-endian.")
    num_tensors, num_entries = cursor.count(24), cursor.count(12)
    metadata: dict[str, Any] = {}
    for _ in range(num_entries):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.number("I"))
    entries = [_entry(path, cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment > 1 << 20:
        raise _Broken(f"its alignment is {alignment!r}")
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, GGUFTensor] = {}
    for name, block_type, shape, offset in entries:
        if name in tensors:
            raise _Broken(f"it names {name} twice")
        tensor = GGUFTensor(name, block_type, shape, start + offset, path)
        end = tensor.offset + tensor.rows * tensor.row_bytes
        if end > cursor.size:
            raise _Broken(f"{name} ends at byte {end:,} of {cursor.size:,} (a download cut short?)")
        tensors[name] = tensor
    return GGUFFile(path, metadata, tensors)


def _entry(path: Path, cursor: _Cursor) -> tuple[str, BlockType, tuple[int, ...], int]:
    name, axes = cursor.text(), cursor.number("I")
    if not 1 <= axes <= _MAX_AXES:
        raise _Broken(f"{name} has {axes} axes")
    shape = tuple(cursor.number("Q") for _ in range(axes))[::-1]
    code, offset = cursor.number("I"), cursor.number("Q")
    if code not in TYPES:
        known = ", ".join(kind.name for kind in TYPES.values())
        raise UnsupportedError(
            f"{path}: {name} is stored in ggml's type number {code}, which is not read; {known} are."
        )
    if shape[-1] % TYPES[code].values or not all(shape):
        raise _Broken(f"{name} is {list(shape)}, no whole number of {TYPES[code].name}'s {TYPES[code].values}")
    return name, TYPES[code], shape, offset
