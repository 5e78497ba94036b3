"""GGUF models: metadata becomes config.json and tokenizer, tensors get Hugging Face's names.

The table of architectures.py holds their differences; config.py and rotary.py read metadata by it, views.py tensors,
tokenizer.py the vocabulary. file.py reads the container, blocks.py its block types.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ....errors import CheckpointError
from ....quant.takeover import Grid
from ...container import TensorInfo
from ...source import Packed, Source, write_json
from .architectures import ARCHITECTURES
from .config import pooling, read_config
from .file import GGUFFile, whole
from .tokenizer import special_ids, tokenizer_files
from .views import View, views

__all__ = ["ARCHITECTURES", "GGUF", "whole"]


class GGUF(Source):
    kind = "gguf"

    def __init__(self, path: Path) -> None:
        """Reads metadata and tables of a file, or of all parts of a model of which one is named.

        Raises CheckpointError for a broken file or a missing part, UnsupportedError for another model."""
        self.path = self.config_file = path
        self.file = GGUFFile.open(path)
        row, config = read_config(self.file)
        self.config = config | special_ids(self.file.metadata)
        self._views = views(self.file, row, config)

    def names(self) -> list[str]:
        return list(self._views)

    def info(self, name: str) -> TensorInfo:
        view = self._view(name)
        file, offset = (view.parts[0].file, view.parts[0].offset) if view.parts else (self.path, 0)
        return TensorInfo(name, np.dtype(np.float32), view.shape, file, offset)

    def nbytes(self, name: str) -> int:
        return self._view(name).nbytes

    def packed(self, name: str) -> Packed | None:
        view = self._view(name)
        suits = [part.type.suits for part in view.parts if part.type.suits is not None]
        if not suits or view.is_vector:
            return None
        names, reason = " and ".join(sorted(view.types)), ""
        if view.transposed:
            reason = "the file has its transpose"
        elif len(view.types) > 1:
            reason = f"its parts are {names}"
        elif not all(part.type.grid for part in view.parts):
            reason = f"{names} is no grid of whole zero points and float16 scales"
        return Packed(max(suits, key=lambda fmt: fmt.bits), view.nbytes, reason)

    def read_rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        return self._view(name).floats(self.file, start, stop)

    def read_grid(self, name: str, start: int, stop: int) -> Grid:
        view = self._view(name)
        return view.parts[0].type.read_grid(view.blocks(self.file, start, stop), stop - start)

    def write_companions(self, out: Path) -> None:
        for name, content in tokenizer_files(self.file.metadata, self.path).items():
            write_json(out / name, content)
        if kind := pooling(self.file):  # as sentence-transformers says it
            (out / "1_Pooling").mkdir()
            modes = {f"pooling_mode_{name}": name == kind for name in ("mean_tokens", "lasttoken")}
            write_json(out / "1_Pooling" / "config.json", modes)

    def _view(self, name: str) -> View:
        if name not in self._views:
            raise CheckpointError(f"{self.path} has no tensor {name}.")
        return self._views[name]
