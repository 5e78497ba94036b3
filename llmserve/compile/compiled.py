"""The compiled model as the engine takes it: paths, shapes and limits. Data only, so the engine needs no compiler."""

from __future__ import annotations

import ctypes
import json
import weakref
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ArtifactError

LIBRARY_FILE = "model.so"
INTERFACE_FILE = "interface.json"


@dataclass(frozen=True)
class Interface:
    """The calling interface of a compiled library; written beside it.

    Attributes:
        params: names of the packed parameters, in order.
        page_shape: of one layer's page tensor, less the leading number of pages.
        query_tile: consecutive query tokens that one attention tile may hold.
        max_num_batched_tokens, max_num_seqs: the largest step that memory was planned for.
    """

    device: str
    params: tuple[str, ...]
    vocab_size: int
    num_layers: int
    page_size: int
    page_shape: tuple[int, ...]
    page_dtype: str
    query_tile: int
    max_num_batched_tokens: int
    max_num_seqs: int

    def write(self, directory: Path) -> None:
        (directory / INTERFACE_FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> Interface:
        try:
            raw: dict[str, Any] = json.loads((directory / INTERFACE_FILE).read_text(encoding="utf-8"))
            tuples = {name: tuple(raw[name]) for name in ("params", "page_shape")}
            return cls(**{**raw, **tuples})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{directory} holds no usable library; remove it and start again: {error}.") from error


@dataclass(frozen=True)
class CompiledModel:
    """A model ready to be loaded.

    Attributes:
        name: how it was asked for.
        source: directory with config.json and the tokenizer.
        library, params: directories with the compiled library and with the parameters in its layout.
        cos, sin: rotary tables, float32 [max_model_len, head_dim / 2].
        max_model_len: tokens in a sequence.
        notes: what the maker wants said (conversion and compile figures).
    """

    name: str
    source: Path
    library: Path
    params: Path
    interface: Interface
    scheme: str
    platform: str
    max_model_len: int
    cos: npt.NDArray[np.float32]
    sin: npt.NDArray[np.float32]
    notes: tuple[str, ...] = field(default=())

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers."""
        interface = self.interface
        cells = int(np.prod(interface.page_shape))
        return interface.num_layers * cells * np.dtype(interface.page_dtype).itemsize


def start_threads(owner: object, library: str, wanted: int) -> int:
    """Has a compiled library run its loops on threads of its own (backends/cpu_threads.c) for as long as `owner` lives,
    and returns their number."""
    functions = ctypes.CDLL(library)  # the same copy that TVM loaded; ctypes keeps it loaded
    weakref.finalize(owner, functions.llmserve_threads_stop)
    return int(functions.llmserve_threads_start(wanted))
