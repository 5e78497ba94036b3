"""The reader of checkpoint directories: an index of tensors, of which only the requested rows are read.

Reads safetensors, single or sharded. Pickled checkpoints are refused, because unpickling runs code from the file.
Tensors are read into fresh buffers, not mapped: a conversion's resident memory is its working set, and a file that
shrinks meanwhile is an error and not a SIGBUS.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError
from .container import TensorInfo, read_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint directory, by name, in the order of its files."""

    path: Path
    tensors: dict[str, TensorInfo]

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Indexes a directory without reading tensor data.

        Raises CheckpointError when a file is missing, cut short, corrupt or contradicts another, in one sentence.
        """
        path = Path(path)
        tensors: dict[str, TensorInfo] = {}
        for shard in _shards(path):
            for name, info in read_header(shard).items():
                if name in tensors:
                    raise CheckpointError(f"{path} holds {name} twice, in {tensors[name].file.name} and {shard.name}.")
                tensors[name] = info
        if (path / INDEX).exists() and not (path / SINGLE).exists():
            for name, file in _weight_map(path).items():
                if name not in tensors or tensors[name].file.name != file:
                    raise CheckpointError(f"{path / INDEX} places {name} in {file}, which does not hold it.")
        return cls(path, tensors)

    def names(self) -> list[str]:
        return list(self.tensors)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def info(self, name: str) -> TensorInfo:
        """Dtype, shape, size and file of a tensor; CheckpointError when there is none of that name."""
        try:
            return self.tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.path} has no tensor {name}.") from None

    def read(self, name: str) -> npt.NDArray[Any]:
        """The whole tensor, in its own dtype (bfloat16 is ml_dtypes') and shape."""
        info = self.info(name)
        return self.read_rows(name, 0, info.rows[0]).reshape(info.shape)

    def read_rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows [start, stop) of the tensor seen as [rows, last axis]; a vector [N] counts as [N, 1]."""
        info = self.info(name)
        rows, width = info.rows
        if not 0 <= start <= stop <= rows:
            raise IndexError(f"{name} has {rows} rows, not [{start}, {stop})")
        buffer = np.empty((stop - start, width), info.dtype)
        view = buffer.reshape(-1).view(np.uint8).data
        try:
            with info.file.open("rb") as file:
                file.seek(info.offset + start * width * info.dtype.itemsize)
                while view and (count := file.readinto(view)):
                    view = view[count:]
        except OSError as error:
            raise CheckpointError(f"{info.file} cannot be read ({error.strerror}).") from error
        if view:
            raise CheckpointError(f"{info.file} ended in the middle of {name}.")
        return buffer


def _shards(path: Path) -> Iterator[Path]:
    if (path / SINGLE).exists():
        yield path / SINGLE
    elif (path / INDEX).exists():
        yield from (path / shard for shard in sorted(set(_weight_map(path).values())))
    elif not path.is_dir():
        raise CheckpointError(f"{path} is not a directory.")
    elif any(path.glob("*.bin")) or any(path.glob("*.pt*")):
        raise CheckpointError(
            f"{path} holds pickled weights only, which are never read because loading them runs code; ask the Hub for "
            "a revision with *.safetensors, or save the model again with transformers' save_pretrained."
        )
    else:
        raise CheckpointError(f"{path} has neither {SINGLE} nor {INDEX}.")


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor name → shard file name, of which none leads out of the directory."""
    index = path / INDEX
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not weight_map or not all(isinstance(file, str) for file in weight_map.values()):
            raise ValueError
    except OSError as error:
        raise CheckpointError(f"{index} cannot be read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is corrupt: it has no `weight_map` from tensors to files.") from error
    for file in weight_map.values():
        plain = PurePosixPath(file).name == file == PureWindowsPath(file).name
        if not plain or not file.endswith(".safetensors"):
            raise CheckpointError(f"{index} names {file!r}, which is not a *.safetensors file of that directory.")
    return dict(weight_map)
