"""Sources of weights, as a conversion reads them: named matrices and vectors of floats, some of them quantized.

A plain checkpoint is a source of floats. Formats that hold quantized weights (weights/foreign) present the same names
and shapes, and beside the floats their grid of integers, so that it can be taken over without rounding again.
"""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..quant.group import GroupFormat
from ..quant.takeover import Grid
from .container import TensorInfo
from .read import Checkpoint

# Files that a converted directory needs beside its weights; all small, and none of them code.
COMPANIONS = ("*.json", "*.jinja", "additional_chat_templates/*.jinja", "tokenizer.model", "LICENSE*", "README*")
_NOT_COMPANIONS = {
    *("config.json", "manifest.json", "quantize_config.json", "quant_config.json"),
    *("mlc-chat-config.json", "tensor-cache.json", "ndarray-cache.json", "ndarray-cache-b16.json"),
}


@dataclass(frozen=True)
class Packed:
    """The facts about a tensor that a source holds quantized.

    Attributes:
        format: ours that suits it: the smallest that holds its grid, or where none does, one that loses little.
        reason: why its grid cannot be taken over, in words that follow "because"; empty if it can.
        nbytes: its size in the file, scales included.
    """

    format: GroupFormat
    nbytes: int
    reason: str = ""

    @property
    def exact(self) -> bool:
        return not self.reason


class Source(ABC):
    """A model's tensors by their Hugging Face names. Subclasses say which are packed, and how to read those.

    Attributes:
        path: directory or file.
        config: the keys of config.json, and config_file where they come from.
        kind: of packed weights: "gptq", "gguf" …; empty for a plain checkpoint.
        has_tokenizer_files: whether `path` is a directory with config.json and tokenizer as Hugging Face has them.
    """

    path: Path
    config_file: Path
    config: dict[str, Any]
    kind: str = ""
    has_tokenizer_files: bool = False

    @abstractmethod
    def names(self) -> list[str]:
        """All tensors. Of packed ones the name is that of the weight that they stand for."""

    @abstractmethod
    def info(self, name: str) -> TensorInfo:
        """File, dtype and shape [out, in] or [out]; for packed tensors those of the weight that `read_rows` gives.

        Raises CheckpointError when there is no tensor of that name."""

    @abstractmethod
    def read_rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows [start, stop) in floats; a vector [N] counts as [N, 1]."""

    def packed(self, name: str) -> Packed | None:
        """How a tensor is packed; None if it is floats."""
        return None

    def read_grid(self, name: str, start: int, stop: int) -> Grid:
        """Rows [start, stop) of a tensor whose `packed` is exact. Raises ValueError for any other."""
        raise ValueError(f"{name} does not lie on a grid")

    def ignorable(self) -> list[str]:
        """Tensors that may be ignored if the model has no place for them."""
        return []

    @abstractmethod
    def write_companions(self, out: Path) -> None:
        """Tokenizer, chat template, licence and the like. `config.json` is written from `config`."""

    def nbytes(self, name: str) -> int:
        """The tensor's size in its file."""
        packed = self.packed(name)
        return packed.nbytes if packed else self.info(name).nbytes


class PlainSource(Source):
    """A checkpoint directory of floats, which are read as they lie there."""

    has_tokenizer_files = True

    def __init__(self, path: Path, config: Mapping[str, Any] | None = None) -> None:
        self.path, self.config_file, self.config = path, path / "config.json", dict(config or {})

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Opened when first asked for. Raises CheckpointError as `Checkpoint.open` does."""
        return Checkpoint.open(self.path)

    def names(self) -> list[str]:
        return self.checkpoint.names()

    def info(self, name: str) -> TensorInfo:
        return self.checkpoint.info(name)

    def read_rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        return self.checkpoint.read_rows(name, start, stop)

    def write_companions(self, out: Path) -> None:
        copy_companions(self.path, out)


def same_rows(source: Source, one: str, other: str, sample: int = 64) -> bool:
    """Whether two tensors are alike in shape and in rows from all over them."""
    rows = source.info(one).rows[0]
    if source.info(one).shape != source.info(other).shape:
        return False
    places = {i * rows // sample for i in range(sample)} | {rows - 1}
    return all(
        np.array_equal(source.read_rows(one, i, i + 1), source.read_rows(other, i, i + 1)) for i in sorted(places)
    )


def copy_companions(path: Path, out: Path) -> None:
    """Copies what belongs to a model beside its weights from one directory to another."""
    for pattern in COMPANIONS:
        for file in path.glob(pattern):
            if not file.name.endswith(".index.json") and file.name not in _NOT_COMPANIONS:
                target = out / file.relative_to(path)
                target.parent.mkdir(exist_ok=True)
                shutil.copy(file, target)


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """An object as JSON, for people to read as well."""
    file.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
