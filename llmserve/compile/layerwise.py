"""Layer programs for calibration: one decoder layer, compiled once and run with each layer's float weights.

The layer is the family's own module; the inputs of its weight matrices are recorded while it is traced, so no family
knows of this. Keys and values live for one call only. Memory is that of one layer and one call's tokens.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor

from ..kernels import step
from ..kernels.base import KernelSet, UnfusedWeight, Weight, active, using
from ..kernels.step import Argument
from ..models import rope
from ..models.base import Family, batch_of, entry, spec_of
from ..models.config import DecoderConfig, LayerKind
from ..models.layers import DecoderLayer, PageFormat
from ..models.parts import Fold, Matrix, walk
from ..weights.load import aligned
from .compiled import LIBRARY_FILE, start_threads
from .host import link
from .pipeline import compile_module

Array = npt.NDArray[np.float32]

_PAGE_SIZE = 16
_PREFIX = "model.layers.0."


@dataclass
class _Recorded(UnfusedWeight):
    """A weight that records its inputs on `tape`, and is otherwise `weight`."""

    weight: Weight
    tape: list[Tensor]

    @property
    def params(self) -> Mapping[str, tuple[tuple[int, ...], str]]:
        return self.weight.params

    def arrange(self, stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.weight.arrange(stored)

    def matmul(self, x: Tensor, params: Mapping[str, Tensor], out: Tensor | None = None) -> Tensor:
        self.tape.append(x)
        return self.weight.matmul(x, params, out)

    def lookup(self, ids: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        return self.weight.lookup(ids, params)


_X = Argument("x", ("num_tokens", "hidden_size"), "float32")
_POSITIONS = step.INDEX[step.index_of("positions")]
_PLACES = tuple(row for row in step.INDEX if row.name not in ("token_ids", "logit_rows"))
"""The arguments by which a layer knows its tokens' positions and pages."""


class _Layer(nn.Module):
    """The entry points: the first layer's input, the inputs of a layer's matrices, its output, the last norm, and the
    scaling of the head's product."""

    def __init__(self, family: Family, config: DecoderConfig, kind: LayerKind) -> None:
        self.whole = family.model(config.one_layer(kind), PageFormat(_PAGE_SIZE, "float32"))
        self.tape: list[Tensor] = []
        for _, matrix in self.matrices():
            weight = active().weight(matrix.out_features, matrix.in_features, "float32", matrix.has_bias)
            matrix.bind(_Recorded(weight, self.tape))

    @property
    def layer(self) -> DecoderLayer:
        layer: DecoderLayer = self.whole.model.layers[0]
        return layer

    def matrices(self) -> Iterator[tuple[str, Matrix]]:
        return ((name, module) for name, module in walk(self.layer) if isinstance(module, Matrix))

    @entry(_X, _POSITIONS)
    def begin(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rows [M, hidden] of the embedding → the first layer's x."""
        return self.whole.model.begin(x, positions)

    @entry(_X, *_PLACES, *step.ROTARY, "pages")
    def inputs(self, x: Tensor, pages: Tensor, **arrays: Tensor) -> tuple[Tensor, ...]:
        """x [M, hidden] → the input [M, in] of each matrix, in the order of `matrices`."""
        self.tape.clear()
        self._run(x, pages, arrays)
        return tuple(self.tape)

    @entry(_X, *_PLACES, *step.ROTARY, "pages")
    def output(self, x: Tensor, pages: Tensor, **arrays: Tensor) -> tuple[Tensor, Tensor]:
        """x [M, hidden] → two terms whose sum is the next layer's x."""
        return self._run(x, pages, arrays)

    def _run(self, x: Tensor, pages: Tensor, arrays: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        batch = batch_of(arrays, token_ids=arrays["positions"], logit_rows=arrays["slots"])
        branch, residual = self.layer(x, None, batch, pages)
        return branch, residual

    @entry(_X)
    def normed(self, x: Tensor) -> Tensor:
        """x [M, hidden] → the head's input."""
        return self.whole.model.norm(x)

    @entry(step.LOGITS)
    def finish(self, logits: Tensor) -> Tensor:
        """The head's product → logits, written and returned."""
        return self.whole.finish(logits)

    def spec(self) -> nn.spec.ModuleSpec:
        packed = {"param_mode": "packed", "effect_mode": "none"}
        pages = nn.spec.Tensor(list(active().page_tensor(self.layer.self_attn.shape, "num_pages")), "float32")
        entries = {name: {"pages": pages, "$": dict(packed)} for name in ("inputs", "output")}
        entries |= {name: {"$": dict(packed)} for name in ("begin", "normed", "finish")}
        return spec_of(self, entries, self.whole.config)


class LayerProgram:
    """A compiled layer of one kind, for `sequences` times `length` tokens a call at most."""

    def __init__(
        self, family: Family, config: DecoderConfig, kind: LayerKind, kernels: KernelSet, sequences: int, length: int
    ) -> None:
        self.config, self.kernels, self.max_sequences, self.length = config, kernels, sequences, length
        with using(kernels):
            self._module = _Layer(family, config, kind)
            self.page_shape = kernels.page_tensor(self._module.layer.self_attn.shape, self._pages_per_call)
            self.query_tile = kernels.query_tile(self._module.layer.self_attn.shape)
        self._tables = tuple(aligned(table) for table in rope.tables(config, length))

    @property
    def _pages_per_call(self) -> int:
        return self.max_sequences * -(-self.length // _PAGE_SIZE)

    def matrices(self) -> dict[str, Matrix]:
        """The layer's weight matrices by their names below the layer, in the order of `inputs`."""
        return dict(self._module.matrices())

    def floats(self) -> list[str]:
        """Norms and tables of the layer, by their names below it."""
        return [name.removeprefix(_PREFIX) for name, _ in self._module.whole.floats() if name.startswith(_PREFIX)]

    def outer_floats(self) -> list[str]:
        """Those of the model outside its layers, by their names in the model."""
        return [name for name, _ in self._module.whole.floats() if not name.startswith(_PREFIX)]

    def folds(self) -> list[Fold]:
        """The channels that calibration may scale."""
        return list(self._module.layer.folds())

    def compile(self, target: Mapping[str, Any], directory: Path) -> None:
        """Writes the library into `directory`."""
        with using(self.kernels):
            module, _ = self._module.export_tvm(self._module.spec())
        module = relax.transform.DeadCodeElimination()(module)  # `inputs` wants nothing of the last product
        executable = compile_module(module, target, {"num_tokens": self.max_sequences * self.length})
        executable.export_library(str(directory / LIBRARY_FILE), fcompile=link)

    def load(self, directory: Path) -> None:
        """Takes the library into this process; from now on it is to be called from this thread."""
        import tvm
        from tvm.runtime.vm import VirtualMachine

        self._tensor = tvm.runtime.from_dlpack
        library = str(directory / LIBRARY_FILE)
        self._vm = VirtualMachine(tvm.runtime.load_module(library), tvm.cpu())
        start_threads(self, library, len(os.sched_getaffinity(0)))
        self._pages = self._tensor(aligned(np.zeros(self.page_shape, np.float32)))

    def set_weights(self, stored: Mapping[str, npt.NDArray[Any]], outer: Mapping[str, npt.NDArray[Any]] = {}) -> None:
        """The layer to run from now on: `<matrix>.weight`, `<matrix>.bias` and `floats`, float32, by their names below
        the layer; and `outer_floats`, which only `begin` and `normed` read (ones stand in for those that are
        missing)."""
        import tvm_ffi

        params: dict[str, npt.NDArray[Any]] = {}
        for name, matrix in self._module.matrices():
            parts = ("weight", "bias")
            own = {part: stored[f"{name}.{part}"] for part in parts if f"{name}.{part}" in stored}
            params |= {f"{_PREFIX}{name}.{suffix}": array for suffix, array in matrix.arrange(own).items()}
        for name, param in self._module.whole.floats():
            inside = name.startswith(_PREFIX)
            array = stored[name.removeprefix(_PREFIX)] if inside else outer.get(name, np.ones(param.shape, np.float32))
            params[name] = array
        names = [name.removeprefix("whole.") for name, _ in self._module.named_parameters()]
        self._params = tvm_ffi.convert([self._tensor(aligned(params[name])) for name in names])

    def begin(self, x: Array, positions: npt.NDArray[np.integer]) -> Array:
        """Rows [M, hidden] of the embedding at these positions → the first layer's x. Any number of rows."""
        parts = []
        for at in range(0, len(x), step_rows := self.max_sequences * self.length):
            rows, places = x[at : at + step_rows], positions[at : at + step_rows].astype(np.int32)
            parts.append(self._call("begin", self._tensor(aligned(rows)), self._tensor(aligned(places))).numpy())
        return np.concatenate(parts)

    def finish(self, logits: Array) -> Array:
        """The head's product [R, vocab] → logits; up to as many rows as a call has tokens."""
        out: Array = self._call("finish", self._tensor(aligned(logits))).numpy()
        return out

    def inputs(self, x: Array, length: int) -> list[Array]:
        """What each matrix is multiplied with, [M, in], for x [M, hidden] of whole sequences of `length` tokens."""
        return [tensor.numpy() for tensor in self._call("inputs", *self._arguments(x, length))]

    def output(self, x: Array, length: int) -> Array:
        """The next layer's x."""
        branch, residual = self._call("output", *self._arguments(x, length))
        return np.add(branch.numpy(), residual.numpy())

    def normed(self, x: Array) -> Array:
        """The head's input [M, hidden] for the last layer's output."""
        out: Array = self._call("normed", self._tensor(aligned(x))).numpy()
        return out

    def _call(self, name: str, *arguments: Any) -> Any:
        return self._vm[name](*arguments, self._params)

    def _arguments(self, x: Array, length: int) -> list[Any]:
        count = len(x) // length
        if count * length != len(x) or count > self.max_sequences or length > self.length:
            raise ValueError(f"{len(x)} rows are not up to {self.max_sequences} sequences of {length} ≤ {self.length}")
        pages = -(-length // _PAGE_SIZE)
        at = np.arange(length)
        tiles = np.arange(0, length, self.query_tile)
        starts = np.repeat(np.arange(count), len(tiles))
        indices = (
            np.tile(at, count),
            (np.arange(count)[:, None] * pages * _PAGE_SIZE + at).reshape(-1),
            starts,
            starts * length + np.tile(tiles, count),
            np.tile(np.minimum(self.query_tile, length - tiles), count),
            np.arange(count + 1) * pages,
            np.arange(count * pages),
        )
        arrays = [aligned(x), *(aligned(index.astype(np.int32)) for index in indices), *self._tables]
        return [*map(self._tensor, arrays), self._pages]
