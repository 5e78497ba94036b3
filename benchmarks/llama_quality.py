"""llama.cpp's own quantization, and its logits, through the low-level API of llama-cpp-python.

`importance` is what llama.cpp calls an importance matrix: the mean square of each input of each matrix over some text.
Here it comes from llmserve's run over the calibration text; as in llama-imatrix, embedding and head get none.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import gguf
import llama_cpp as api
import numpy as np

from .peer_llama import _quiet

FILE_TYPES = {
    "Q4_0": api.LLAMA_FTYPE_MOSTLY_Q4_0,
    "Q4_K_M": api.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "Q3_K_M": api.LLAMA_FTYPE_MOSTLY_Q3_K_M,
    "Q3_K_S": api.LLAMA_FTYPE_MOSTLY_Q3_K_S,
}


def quantize(
    source: Path, out: Path, kind: str, threads: int, importance: Mapping[str, np.ndarray] | None = None
) -> None:
    """A float GGUF file → one of FILE_TYPES, as `llama-quantize` does it. `importance`: float32 [inputs] by tensor."""
    api.llama_log_set(_quiet, ctypes.c_void_p())
    options = api.llama_model_quantize_default_params()
    options.nthread, options.ftype = threads, FILE_TYPES[kind]
    keep = [(name.encode(), np.ascontiguousarray(values, np.float32)) for name, values in (importance or {}).items()]
    # A row without a name ends the list.
    rows = (api.llama_model_imatrix_data * (len(keep) + 1))()
    for row, (name, values) in zip(rows, keep, strict=False):
        row.name, row.data, row.size = name, values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), len(values)
    if keep:
        options.imatrix = ctypes.cast(rows, type(options.imatrix))
    if code := api.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(options)):
        raise SystemExit(f"llama_model_quantize returned {code}")


def tensor_bytes(file: Path) -> int:
    """Without the file's metadata, of which the vocabulary is the most."""
    return sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(file).tensors)


def kinds_of(file: Path) -> dict[str, int]:
    """The number of matrices of each type."""
    names = [t.tensor_type.name for t in gguf.GGUFReader(file).tensors if len(t.shape) > 1]
    return {name: names.count(name) for name in sorted(set(names))}


class LlamaLogits:
    """A loaded GGUF file that answers with logits for every token of a window."""

    def __init__(self, file: Path, length: int, threads: int) -> None:
        api.llama_log_set(_quiet, ctypes.c_void_p())
        api.llama_backend_init()
        self._model = api.llama_model_load_from_file(str(file).encode(), api.llama_model_default_params())
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {file}")
        self._vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        options = api.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = length
        options.n_threads = options.n_threads_batch = threads
        self._context = api.llama_init_from_model(self._model, options)
        if not self._context:
            raise SystemExit("llama.cpp made no context")
        self._batch = api.llama_batch_init(length, 0, 1)

    def logits(self, tokens: list[int]) -> np.ndarray:
        """float32 [T, vocab]."""
        api.llama_memory_clear(api.llama_get_memory(self._context), True)
        self._batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            self._batch.token[i], self._batch.pos[i], self._batch.logits[i] = token, i, True
            self._batch.n_seq_id[i], self._batch.seq_id[i][0] = 1, 0
        if code := api.llama_decode(self._context, self._batch):
            raise SystemExit(f"llama_decode returned {code}")
        found = np.ctypeslib.as_array(api.llama_get_logits(self._context), (len(tokens), self._vocab))
        return found.copy()

    def close(self) -> None:
        api.llama_batch_free(self._batch)
        api.llama_free(self._context)
        api.llama_model_free(self._model)


@contextmanager
def loaded(file: Path, length: int, threads: int) -> Iterator[LlamaLogits]:
    model = LlamaLogits(file, length, threads)
    try:
        yield model
    finally:
        model.close()
