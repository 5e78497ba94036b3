"""A plan becomes one buffer of indices, the indices one call of the compiled step, and the call logits.

Everything that the step needs to know about sequences travels in int32 arrays made here; the compiled side has no state
but the pages. numpy on the host, tvm for the call.
"""

from __future__ import annotations

import os
from collections.abc import Sequence as Items
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import backends
from ..compile.compiled import LIBRARY_FILE, CompiledModel, start_threads
from ..weights.load import huge_memory, load_params
from .sampling_params import SamplingParams
from .scheduler import ScheduledSequence

Ints = npt.NDArray[np.int32]


class ModelRunner:
    """The loaded library, its parameters and the pages. Belongs to the thread that made it, as TVM's scratch does."""

    def __init__(self, model: CompiledModel, num_pages: int, num_threads: int | None = None) -> None:
        import tvm
        import tvm_ffi
        from tvm.runtime.vm import VirtualMachine

        self.interface = model.interface
        self._tensor = tvm.runtime.from_dlpack
        backends.load(model.interface.device)
        device = tvm.device(model.interface.device)
        library = str(model.library / LIBRARY_FILE)
        self._vm = VirtualMachine(tvm.runtime.load_module(library), device)
        self.num_threads = start_threads(self, library, num_threads or len(os.sched_getaffinity(0)))
        self._step, self._hidden, self._head = self._vm["step"], self._vm["hidden"], self._vm["head"]
        self._sample = self._vm["sample"]
        arrays = load_params(model.params, resident=True)
        # As FFI arrays: a list would be converted at every call.
        self._params = tvm_ffi.convert([self._tensor(arrays[name]) for name in model.interface.params])
        self._rope = [self._tensor(_aligned(table)) for table in (model.cos, model.sin)]
        page_shape = (num_pages, *self.interface.page_shape)
        self.pages = tvm_ffi.convert(
            [self._tensor(_huge(page_shape, self.interface.page_dtype)) for _ in range(self.interface.num_layers)]
        )
        self._indices = _aligned_empty((4096,), np.int32)
        self._logits = _aligned_empty((self.interface.max_num_seqs, self.interface.vocab_size))

    def logits(self, plan: Items[ScheduledSequence], rows: Ints | None = None) -> npt.NDArray[np.float32]:
        """Compute a plan; its keys and values are in the pages afterwards.

        Returns float32 [R, vocab], valid until the next call: one row for each scheduled sequence that samples, in
        order, or for each of `rows` (int32 [R], indices into the step's flattened tokens) if given.
        """
        indices, last = self._flatten(plan)
        wanted = last if rows is None else rows
        # Nobody samples in a pure prefill chunk; one row keeps the shapes non-empty, and its logits are dropped.
        asked = wanted if len(wanted) else [0]
        out = self._logits[: len(asked)]
        self._step(*self._pack(*indices, asked), *self._rope, self._tensor(out), self.pages, self._params)
        logits: npt.NDArray[np.float32] = out[: len(wanted)]
        return logits

    def hidden(self, plan: Items[ScheduledSequence], rows: Ints | None = None) -> npt.NDArray[np.floating]:
        """Compute a plan as `logits` does, and return normed hidden states [R, hidden] instead, in the dtype of
        activations. `rows` may be any of the step's tokens; there is no other limit to their number."""
        indices, last = self._flatten(plan)
        wanted = last if rows is None else rows
        asked = wanted if len(wanted) else [0]
        states = self._hidden(*self._pack(*indices, asked), *self._rope, self.pages, self._params).numpy()
        return states[: len(wanted)]  # type: ignore[no-any-return]

    def head(self, hidden: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Logits float32 [R, vocab] of hidden states [R, hidden]; R at most max_num_seqs. Valid until the next call."""
        out: npt.NDArray[np.float32] = self._logits[: len(hidden)]
        self._head(self._tensor(_aligned(hidden)), self._tensor(out), self._params)
        return out

    def _flatten(self, plan: Items[ScheduledSequence]) -> tuple[list[Items[int]], list[int]]:
        """The step's index arrays, less the wanted rows; and the last row of each sequence that samples."""
        size, tile = self.interface.page_size, self.interface.query_tile
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        tiles: list[tuple[int, int, int]] = []
        indptr, values, last = [0], [], []
        for index, item in enumerate(plan):
            sequence, count, row = item.sequence, item.num_tokens, len(token_ids)
            first = sequence.num_computed_tokens
            stop = first + count
            table = sequence.pages[: -(-stop // size)]
            values += table
            indptr.append(len(values))
            token_ids += sequence.token_ids[first:stop]
            positions += range(first, stop)
            slots += [table[at // size] * size + at % size for at in range(first, stop)]
            tiles += [(index, row + t, min(tile, count - t)) for t in range(0, count, tile)]
            if item.samples:
                last.append(row + count - 1)
        return [token_ids, positions, slots, *zip(*tiles, strict=True), indptr, values], last

    def draw(
        self, rows: npt.NDArray[np.float32], params: Items[SamplingParams], uniforms: Items[float]
    ) -> npt.NDArray[np.int32]:
        """A `sampler.Draw` by the platform's kernel."""
        below_one = np.float32(1 - 2**-24)  # what float64 has below 1 may round to it
        columns = [
            np.array([1 / p.temperature for p in params], np.float32),
            np.array([max(p.top_k, 0) for p in params], np.int32),
            np.array([p.top_p for p in params], np.float32),
            np.array([p.min_p for p in params], np.float32),
            np.minimum(np.array(uniforms, np.float32), below_one),
        ]
        arrays = [rows if rows.ctypes.data % 64 == 0 else _aligned(rows), *map(_aligned, columns)]
        tokens: npt.NDArray[np.int32] = self._sample(*map(self._tensor, arrays)).numpy()
        return tokens

    def _pack(self, *arrays: Items[int] | Ints) -> list[Any]:
        """The arrays as int32 tensors that share one buffer, each on 64 bytes."""
        starts, end = [], 0
        for array in arrays:
            starts.append(end)
            end += -(-len(array) // 16) * 16
        if end > len(self._indices):
            self._indices = _aligned_empty((2 * end,), np.int32)
        tensors = []
        for start, array in zip(starts, arrays, strict=True):
            view = self._indices[start : start + len(array)]
            view[:] = array
            tensors.append(self._tensor(view))
        return tensors


def _huge(shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
    """Zeros that take memory as they are touched, for what kernels stream through."""
    count = int(np.prod(shape))
    return np.frombuffer(huge_memory(count * np.dtype(dtype).itemsize), dtype, count).reshape(shape)


def _aligned_empty(shape: tuple[int, ...], dtype: Any = np.float32) -> npt.NDArray[Any]:
    """An array that starts on 64 bytes, as compiled code may assume."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = np.empty(nbytes + 64, np.uint8)
    start = -room.ctypes.data % 64
    array: npt.NDArray[Any] = room[start : start + nbytes].view(dtype).reshape(shape)
    return array


def _aligned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    out = _aligned_empty(array.shape, array.dtype)
    out[...] = array
    return out
