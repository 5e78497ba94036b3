"""A compiled model on a GPU without the engine: plans written out by hand, one call of `step` for each.

It uses the compiled model's interface (`llmserve.kernels.base.Batch`) and nothing of the scheduler.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .device import load, put

Run = tuple[int, Sequence[int], Sequence[int]]
"""Tokens of one sequence: how many it has in its pages, the ones to compute, and its page table."""


class DeviceModel:
    """A library, its parameters and its pages on a device."""

    def __init__(self, directory: Path, device: Any, parameters: Callable[[str, Sequence[int], str], Any]) -> None:
        """`parameters(name, shape, dtype)` makes each parameter's tensor."""
        import tvm
        import tvm_ffi
        from tvm.runtime.vm import VirtualMachine

        self.device, self._tvm = device, tvm
        self.interface = json.loads((directory / "interface.json").read_text(encoding="utf-8"))
        specs = json.loads((directory / "parameters.json").read_text(encoding="utf-8"))
        self.vm = VirtualMachine(load(directory / "model.so"), device)
        self._step = self.vm["step"]
        self.specs = {name: (tuple(shape), dtype) for name, shape, dtype in specs}
        made = [parameters(name, *self.specs[name]) for name in self.interface["params"]]
        self.params = tvm_ffi.convert(made)

    def make_pages(self, count: int, make: Callable[[Sequence[int], str], Any]) -> None:
        """`make(shape, dtype)` makes one layer's pages."""
        import tvm_ffi

        self.pages: Any = None  # what was there before goes first
        shape = (count, *self.interface["page_shape"])
        dtype = self.interface["page_dtype"]
        self.pages = tvm_ffi.convert([make(shape, dtype) for _ in range(self.interface["num_layers"])])

    def set_rope(self, cos: np.ndarray, sin: np.ndarray) -> None:
        self._rope = (put(cos, self.device), put(sin, self.device))

    def plan(self, runs: Sequence[Run], rows: Sequence[int] | None = None) -> tuple[list[Any], Any]:
        """The arguments of a step on the device, and where its logits will be; `rows` None: each run's last."""
        size, tile = self.interface["page_size"], self.interface["query_tile"]
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        tiles: list[tuple[int, int, int]] = []
        indptr, values, last = [0], [], []
        for index, (first, tokens, table) in enumerate(runs):
            row, at = len(ids), range(first, first + len(tokens))
            used = table[: -(-at.stop // size)]
            ids += tokens
            positions += at
            slots += [table[p // size] * size + p % size for p in at]
            tiles += [(index, row + t, min(tile, len(tokens) - t)) for t in range(0, len(tokens), tile)]
            values += used
            indptr.append(len(values))
            last.append(len(ids) - 1)
        wanted = last if rows is None else rows
        arrays = (ids, positions, slots, *zip(*tiles, strict=True), indptr, values, wanted)
        indices = [put(np.array(array, np.int32), self.device) for array in arrays]
        shape = (len(wanted), self.interface["vocab_size"])
        return indices, self._tvm.runtime.empty(shape, "float32", self.device)

    def call(self, plan: tuple[list[Any], Any]) -> None:
        indices, logits = plan
        self._step(*indices, *self._rope, logits, self.pages, self.params)

    def logits(self, runs: Sequence[Run], rows: Sequence[int] | None = None) -> np.ndarray:
        plan = self.plan(runs, rows)
        self.call(plan)
        logits: np.ndarray = plan[1].numpy()
        return logits
