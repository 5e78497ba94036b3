"""The speed of a GPU by kernels of ours, and of a model on it.

Times are medians of wall-clock time, see `device.seconds`; bytes and operations are those that the arithmetic needs,
even where a kernel reads something twice. Weights are random: no time here depends on their values.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .cases import STREAM_WIDTH
from .device import filled, put, seconds
from .model import DeviceModel, Run

Figures = dict[str, Any]
LINEAR_ROWS = (1, 8, 64, 2048)
LINEAR_ROWS_SMALL = (1, 64)


def random_block(dtype: str, count: int = 16 << 20) -> np.ndarray:
    """Words of any bits; floats near 1 / 64, so that sums over thousands of them stay numbers in float16."""
    rng = np.random.default_rng(0)
    if np.dtype(dtype).kind in "iu":
        return rng.integers(0, 1 << 32, count, np.uint32).view(dtype)
    return (rng.standard_normal(count, np.float32) / 64).astype(dtype)


def bandwidth(function: Callable[[str], Any], device: Any, small: bool) -> Figures:
    """GB/s of a kernel that copies (both directions count) and of one that reads; 2 GiB, no cache holds that."""
    rows = (1 << 31 if not small else 1 << 24) // (4 * STREAM_WIDTH)
    block = random_block("float32", 1 << 22)
    x, y = (filled((rows, STREAM_WIDTH), "float32", device, block) for _ in range(2))
    sums = put(np.zeros((rows, 1), np.float32), device)
    nbytes = rows * STREAM_WIDTH * 4
    copy, read = function("timed_stream_copy_float32"), function("timed_stream_read_float32")
    return {
        "copy_gbs": 2 * nbytes / seconds(lambda: copy(x, y), device) / 1e9,
        "read_gbs": nbytes / seconds(lambda: read(x, sums), device) / 1e9,
    }


def linear(function: Any, case: dict[str, Any], device: Any, small: bool) -> Figures:
    """A matmul of one storage at several numbers of rows: time, bytes of weights per second, operations per second.

    Several copies of the weights take turns, more than caches hold.
    """
    n, k = case["n"], case["k"]
    params: list[tuple[tuple[int, int], str]] = [(tuple(shape), dtype) for shape, dtype in case["params"]]
    nbytes = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in params)
    copies = 1 if small else max(1, -(-(512 << 20) // nbytes))
    blocks = {dtype: random_block(dtype) for _, dtype in params}
    sets = [[filled(shape, dtype, device, blocks[dtype]) for shape, dtype in params] for _ in range(copies)]
    figures: Figures = {"weight_bytes": nbytes}
    for m in LINEAR_ROWS_SMALL if small else LINEAR_ROWS:
        x = filled((m, k), "float16", device, random_block("float16", 1 << 20))
        y = put(np.zeros((m, n), np.float16), device)

        def everything(x: Any = x, y: Any = y) -> None:
            for weights in sets:
                function(x, *weights, y)

        took = seconds(everything, device) / copies
        figures[str(m)] = {"us": took * 1e6, "gbs": nbytes / took / 1e9, "tflops": 2 * m * n * k / took / 1e12}
    return figures


class TimedModel:
    """A model of random weights, timed. Pages are made for the largest item that fits."""

    def __init__(self, directory: Path, device: Any, facts: dict[str, Any]) -> None:
        """`facts`, of the manifest: `weight_bytes` that a step reads, `kv_bytes` of a token, `linear_size`, the weights
        that each token is multiplied with, `head_size`, those of each token's logits, and `longest`, a context."""
        self.device, self.facts = device, facts
        blocks: dict[str, np.ndarray] = {}

        def make(name: str, shape: Any, dtype: str) -> Any:
            if dtype not in blocks:
                blocks[dtype] = random_block(dtype)
            return filled(shape, dtype, device, blocks[dtype])

        self.model = DeviceModel(directory, device, make)
        interface = self.model.interface
        self.size = interface["page_size"]
        half = interface["page_shape"][-1] // 2
        angle = np.outer(np.arange(facts["longest"]), 500000.0 ** (-np.arange(half) / half))
        self.model.set_rope(np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32))
        self._block = random_block(interface["page_dtype"], 1 << 22)
        self._num_pages = 0

    def _pages(self, sequences: int, tokens: int) -> list[list[int]]:
        """Page tables for so many sequences of so many tokens, in pages that are scattered."""
        each = -(-tokens // self.size)
        if sequences * each > self._num_pages:
            self._num_pages = sequences * each
            self.model.make_pages(self._num_pages, lambda shape, dtype: filled(shape, dtype, self.device, self._block))
        order = np.random.default_rng(1).permutation(sequences * each).tolist()
        return [order[i * each : (i + 1) * each] for i in range(sequences)]

    def decode(self, sequences: int, context: int) -> Figures:
        """One token in each sequence, the last of `context`."""
        tables = self._pages(sequences, context)
        return self._timed([(context - 1, [7 + i], table) for i, table in enumerate(tables)], sequences * context)

    def prefill(self, tokens: int) -> Figures:
        """A prompt from its beginning, in one step."""
        [table] = self._pages(1, tokens)
        return self._timed([(0, [(7 * i) % 1000 for i in range(tokens)], table)], tokens)

    def _timed(self, runs: list[Run], cached: int) -> Figures:
        plan = self.model.plan(runs)
        took = seconds(lambda: self.model.call(plan), self.device, repetitions=5)
        rows = sum(len(tokens) for _, tokens, _ in runs)
        nbytes = self.facts["weight_bytes"] + cached * self.facts["kv_bytes"]
        head = self.facts["head_size"] * len(runs)
        kernels = self._kernels(plan, cached)
        return {
            "ms": took * 1e3,
            "tokens_per_s": rows / took,
            "gbs": nbytes / took / 1e9,
            "tflops": 2 * (self.facts["linear_size"] * rows + head) / took / 1e12,
            "kernels_ms": sum(k["ms"] for k in kernels),
            "kernels": kernels,
        }

    def _kernels(self, plan: Any, cached: int) -> list[Figures]:
        """Each kernel of a step by itself: its calls in all layers in a loop, so that each call finds other weights."""
        calls: dict[str, list[tuple[Any, tuple[Any, ...]]]] = {}

        def note(function: Any, name: str, before: bool, _: Any, *arguments: Any) -> None:
            if before and not name.startswith("vm.builtin"):
                calls.setdefault(name, []).append((function, arguments))

        self.model.vm.set_instrument(note)
        self.model.call(plan)
        self.model.vm.set_instrument(lambda *_: None)
        self.device.sync()
        kernels = []
        for name, found in calls.items():
            if any(not hasattr(a, "shape") for _, arguments in found for a in arguments):
                continue  # not a kernel: the step itself

            def everything(found: Any = found) -> None:
                for function, arguments in found:
                    function(*arguments)

            took = seconds(everything, self.device, 0.02, 3)
            kernels.append(
                {"name": name, "calls": len(found), "ms": took * 1e3, **self._work(name, found, cached, took)}
            )
        total = sum(k["ms"] for k in kernels)
        return [{**k, "share": k["ms"] / total} for k in sorted(kernels, key=lambda k: -k["ms"])]

    def _work(self, name: str, found: Any, cached: int, took: float) -> Figures:
        """Rates, where what a kernel has to read is known: matmuls all of their arguments, attention the cache."""
        if name.startswith("linear"):
            shapes = [[tuple(int(n) for n in a.shape) for a in arguments] for _, arguments in found]
            nbytes = sum(
                int(np.prod(shape)) * np.dtype(str(a.dtype)).itemsize
                for (_, arguments), own in zip(found, shapes, strict=True)
                for a, shape in zip(arguments, own, strict=True)
            )
            flops = sum(2 * own[0][0] * own[0][1] * own[-1][1] for own in shapes)
            return {"gbs": nbytes / took / 1e9, "tflops": flops / took / 1e12, "shape": list(shapes[0][1])}
        if name.startswith("attention"):
            return {"gbs": cached * self.facts["kv_bytes"] / took / 1e9}
        return {}
