"""The model runner: calls the compiled model for a plan, and returns tokens, logits or hidden states.

The compiled side has no state but the pages; what it needs to know about sequences and their next tokens comes in the
arrays of step_arrays.py. On any device, a step is one copy there, the calls, and one copy of the tokens back.
"""

from __future__ import annotations

import os
from collections.abc import Sequence as Items

import numpy as np
import numpy.typing as npt

from ... import backends
from ...backends.replay import Replayed
from ...compile.compiled import LIBRARY_FILE, CompiledModel, start_threads
from ...weights.load import load_params
from ..plan.scheduler import ScheduledSequence
from .choices import ChoiceArguments, Chosen
from .device_memory import HostMemory, Memory, RowBuffer, StagedArrays, Staging, memory_of
from .step_arrays import INDICES, ROWS, Ints, StepArrays
from .virtual_machine import load_library


class ModelRunner:
    """The loaded library, its parameters and the pages. Belongs to the thread that made it, as TVM's scratch does.

    Attributes:
        COMPILED: the attributes that hold the compiled calls of a step, for those that time them.
    """

    COMPILED = ("_next", "_step")

    def __init__(
        self, model: CompiledModel, num_pages: int, num_threads: int | None = None, memory: Memory | None = None
    ) -> None:
        """`memory` None is that of the model's device."""
        import tvm_ffi

        self.interface = interface = model.interface
        backends.load(interface.device)
        library = model.library / LIBRARY_FILE
        self._vm = load_library(library, interface.device)
        self.num_threads = 1
        self._next, self._step, self._hidden = self._vm["next"], self._vm["step"], self._vm["hidden"]
        if interface.device == "cpu":
            self.num_threads = start_threads(self, str(library), num_threads or len(os.sched_getaffinity(0)))
            self._next = Replayed(self._vm, "next", str(library))
        self._head, self._sample = self._vm["head"], self._vm["sample"]
        self._memory = memory or memory_of(interface.device)
        arrays = load_params(model.params, resident=isinstance(self._memory, HostMemory))
        # As FFI arrays: a list would be converted at every call.
        self._params = tvm_ffi.convert([self._memory.put(arrays[name]) for name in interface.params])
        self._rope = [self._memory.put(table) for table in (model.cos, model.sin)]
        page_shape = (num_pages, *interface.page_shape)
        self.pages = tvm_ffi.convert(
            [self._memory.tensor(page_shape, interface.page_dtype) for _ in range(interface.num_layers)]
        )
        self._arrays = StepArrays(Staging(self._memory), interface.page_size, interface.query_tile)
        self._logits = RowBuffer(self._memory, (interface.max_num_seqs, interface.vocab_size), "float32")
        self._chosen = RowBuffer(self._memory, (interface.max_num_seqs, 2), "int32")

    def choose(self, plan: Items[ScheduledSequence], choices: ChoiceArguments) -> list[Chosen]:
        """Compute a plan; its keys and values are in the pages afterwards. Returns what a `choices.Choose` does, for
        each scheduled sequence that samples, in order."""
        count = len(choices.knobs)
        if not count:
            self._compute(self._arrays.of_plan(plan, None))
            return []
        tensors = self._arrays.of_plan(plan, None, choices).tensors
        logits, chosen = self._logits.first(count), self._chosen.first(count)
        self._next(*tensors, *self._rope, logits, chosen, self.pages, self._params)
        return self._read(count)

    def logits(self, plan: Items[ScheduledSequence], rows: Ints | None = None) -> npt.NDArray[np.float32]:
        """Compute a plan as `choose` does, and return logits float32 [R, vocab], valid until the next call.

        One row for each scheduled sequence that samples, in order, or for each of `rows` (int32 [R], indices into the
        step's flattened tokens) if given.
        """
        self._compute(self._arrays.of_plan(plan, rows))
        wanted = _num_wanted(plan, rows)
        return self._logits.read(max(wanted, 1))[:wanted]

    def logits_of(self, row: int) -> npt.NDArray[np.float32]:
        """The logits float32 [vocab] that a row's token was chosen from by the last `choose`."""
        return self._logits.read_row(row)

    def choose_from(self, logits: npt.NDArray[np.float32], choices: ChoiceArguments) -> list[Chosen]:
        """A `choices.Choose` by the platform's kernel; at most max_num_seqs rows."""
        tensors = self._arrays.of_choices(choices).tensors
        self._sample(self._memory.put(logits), *tensors, self._chosen.first(len(logits)))
        return self._read(len(logits))

    def hidden(self, plan: Items[ScheduledSequence], rows: Ints | None = None) -> npt.NDArray[np.floating]:
        """Compute a plan as `logits` does, and return normed hidden states [R, hidden] instead, in the dtype of
        activations. `rows` may be any of the step's tokens; there is no other limit to their number."""
        indices = self._arrays.of_plan(plan, rows).tensors
        states = self._memory.get(self._hidden(*indices, *self._rope, self.pages, self._params))
        return states[: _num_wanted(plan, rows)]

    def head(self, hidden: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Logits float32 [R, vocab] of hidden states [R, hidden]; R at most max_num_seqs. Valid until the next call."""
        self._head(self._memory.put(hidden), self._logits.first(len(hidden)), self._params)
        return self._logits.read(len(hidden))

    def _compute(self, staged: StagedArrays) -> None:
        logits = self._logits.first(len(staged.arrays[ROWS]))
        self._step(*staged.tensors[:INDICES], *self._rope, logits, self.pages, self._params)

    def _read(self, count: int) -> list[Chosen]:
        chosen: list[Chosen] = self._chosen.read(count).tolist()
        return chosen


def _num_wanted(plan: Items[ScheduledSequence], rows: Ints | None) -> int:
    return sum(item.samples for item in plan) if rows is None else len(rows)
