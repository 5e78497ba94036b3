"""Converted params, mapped into memory: no copy, no parsing beyond the header. The reading end of convert.py."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArtifactError, CheckpointError
from .container import ALIGNMENT, TensorInfo, read_header

PARAMS_FILE = "params.safetensors"


def load_params(path: str | Path) -> dict[str, npt.NDArray[Any]]:
    """The tensors of the artifact directory `path` by name, each starting on 64 bytes.

    They are views of one private mapping, which lives as long as any of them: pages are read on first touch, shared
    between processes, and writing to an array (DLPack wants it possible) never reaches the file. The few tensors whose
    size breaks the alignment are copied. Raises ArtifactError when the file is missing or broken.
    """
    file = Path(path) / PARAMS_FILE
    try:
        tensors = read_header(file)
        with file.open("rb") as opened:
            mapping = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
    except (CheckpointError, OSError) as error:
        raise ArtifactError(f"{path} holds no usable params; remove it and convert again. {error}") from error
    return {name: _aligned(_view(mapping, info)) for name, info in tensors.items()}


def _view(mapping: mmap.mmap, info: TensorInfo) -> npt.NDArray[Any]:
    raw = np.frombuffer(mapping, np.uint8, info.nbytes, info.offset)
    return raw.view(info.dtype).reshape(info.shape)


def _aligned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if array.ctypes.data % ALIGNMENT == 0:
        return array
    room = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
