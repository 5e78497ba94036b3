"""A plan becomes index arrays, the index arrays one call of the compiled step, and the call logits.

Everything that the step needs to know about sequences travels in int32 arrays made here; the compiled side has no state
but the pages. numpy on the host, tvm for the call.
"""

from __future__ import annotations

import os
from collections.abc import Sequence as Items
from typing import Any

import numpy as np
import numpy.typing as npt

from ..compile.compiled import LIBRARY_FILE, CompiledModel
from ..weights.load import load_params
from .scheduler import ScheduledSequence

Ints = npt.NDArray[np.int32]


class ModelRunner:
    """The loaded library, its parameters and the pages. Belongs to the thread that made it: TVM's workers do too."""

    def __init__(self, model: CompiledModel, num_pages: int, num_threads: int | None = None) -> None:
        # Read once, by TVM's thread pool on its first use; its own default is half of the cores.
        os.environ.setdefault("TVM_NUM_THREADS", str(num_threads or len(os.sched_getaffinity(0))))
        import tvm
        from tvm.runtime.vm import VirtualMachine

        self.interface = model.interface
        self._tensor = tvm.runtime.from_dlpack
        device = tvm.device(model.interface.device)
        self._vm = VirtualMachine(tvm.runtime.load_module(str(model.library / LIBRARY_FILE)), device)
        self._step = self._vm["step"]
        arrays = load_params(model.params)
        self._params = [self._tensor(arrays[name]) for name in model.interface.params]
        self._rope = [self._tensor(_aligned(table)) for table in (model.cos, model.sin)]
        self.pages = [
            tvm.runtime.empty((num_pages, *self.interface.page_shape), self.interface.page_dtype, device)
            for _ in range(self.interface.num_layers)
        ]
        self._logits = _aligned_empty((self.interface.max_num_seqs, self.interface.vocab_size))

    def logits(self, plan: Items[ScheduledSequence], rows: Ints | None = None) -> npt.NDArray[np.float32]:
        """Compute a plan; its keys and values are in the pages afterwards.

        Returns float32 [R, vocab], valid until the next call: one row for each scheduled sequence that samples, in
        order, or for each of `rows` (int32 [R], indices into the step's flattened tokens) if given.
        """
        size, tile = self.interface.page_size, self.interface.query_tile
        counts = [item.num_tokens for item in plan]
        total = sum(counts)
        token_ids, positions = np.empty(total, np.int32), np.empty(total, np.int32)
        slots = np.empty(total, np.int32)
        tiles: list[tuple[int, int, int]] = []
        indptr, values, last = [0], [], []
        row = 0
        for index, (item, count) in enumerate(zip(plan, counts, strict=True)):
            sequence, first = item.sequence, item.sequence.num_computed_tokens
            stop = first + count
            table = sequence.pages[: -(-stop // size)]
            values += table
            indptr.append(len(values))
            if count == 1:
                token_ids[row], positions[row] = sequence.token_ids[first], first
                slots[row] = table[first // size] * size + first % size
                tiles.append((index, row, 1))
            else:
                at = np.arange(first, stop, dtype=np.int32)
                token_ids[row : row + count], positions[row : row + count] = sequence.token_ids[first:stop], at
                slots[row : row + count] = np.asarray(table, np.int32)[at // size] * size + at % size
                tiles += [(index, row + t, min(tile, count - t)) for t in range(0, count, tile)]
            row += count
            if item.samples:
                last.append(row - 1)
        wanted = np.asarray(last, np.int32) if rows is None else rows
        # Nobody samples in a pure prefill chunk; one row keeps the shapes non-empty, and its logits are dropped.
        asked = wanted if len(wanted) else np.zeros(1, np.int32)
        columns = np.asarray(tiles, np.int32).T
        arrays = [
            token_ids,
            positions,
            slots,
            *columns,
            np.asarray(indptr, np.int32),
            np.asarray(values, np.int32),
            asked,
        ]
        out = self._logits[: len(asked)]
        tensors = [self._tensor(_aligned(a)) for a in arrays]
        self._step(*tensors, *self._rope, self._tensor(out), self.pages, self._params)
        logits: npt.NDArray[np.float32] = out[: len(wanted)]
        return logits


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
