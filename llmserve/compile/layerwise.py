"""One decoder layer at a time, compiled once and fed with each layer's float weights: what calibration looks through.

The layer is the family's own module; what its weight matrices are multiplied with is recorded while it is traced, so
no family knows of this. Keys and values live for one call only. Memory is that of one layer and one call's tokens.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor

from ..kernels.base import Batch, Composed, KernelSet, Weight, active, using
from ..models import rope
from ..models.base import Family
from ..models.config import DecoderConfig
from ..models.layers import Matrix, PageFormat, RMSNorm, walk
from ..weights.load import aligned
from .compiled import LIBRARY_FILE, start_threads
from .host import link
from .pipeline import compile_module

Array = npt.NDArray[np.float32]

_PAGE_SIZE = 16


@dataclass
class _Recorded(Composed):
    """A weight that notes what it is multiplied with, and is otherwise the one it stands for."""

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


class _Layer(nn.Module):
    """The entry points: the inputs of a layer's matrices, its output, and the norm after the last layer."""

    def __init__(self, family: Family, config: DecoderConfig, window: int) -> None:
        one = family.model(replace(config, num_layers=1, window=(window,)), PageFormat(_PAGE_SIZE, "float32"))
        self.layer = one.model.layers[0]
        self.norm = one.model.norm
        self.tape: list[Tensor] = []
        for _, matrix in self.matrices():
            weight = active().weight(matrix.out_features, matrix.in_features, "float32", matrix.has_bias)
            matrix.bind(_Recorded(weight, self.tape))

    def matrices(self) -> Iterator[tuple[str, Matrix]]:
        return ((name, module) for name, module in walk(self.layer) if isinstance(module, Matrix))

    def norms(self) -> Iterator[tuple[str, RMSNorm]]:
        return ((name, module) for name, module in walk(self.layer) if isinstance(module, RMSNorm))

    def inputs(
        self,
        x: Tensor,
        positions: Tensor,
        slots: Tensor,
        tile_seq: Tensor,
        tile_row: Tensor,
        tile_rows: Tensor,
        page_indptr: Tensor,
        page_values: Tensor,
        cos: Tensor,
        sin: Tensor,
        pages: Tensor,
    ) -> tuple[Tensor, ...]:
        """x [M, hidden] → what each matrix is multiplied with, [M, in], in the order of `matrices`."""
        self.tape.clear()
        batch = Batch(
            positions, positions, slots, tile_seq, tile_row, tile_rows, page_indptr, page_values, slots, cos, sin
        )
        self.layer(x, None, batch, pages)
        return tuple(self.tape)

    def output(
        self,
        x: Tensor,
        positions: Tensor,
        slots: Tensor,
        tile_seq: Tensor,
        tile_row: Tensor,
        tile_rows: Tensor,
        page_indptr: Tensor,
        page_values: Tensor,
        cos: Tensor,
        sin: Tensor,
        pages: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """x [M, hidden] → two terms whose sum is the next layer's x."""
        batch = Batch(
            positions, positions, slots, tile_seq, tile_row, tile_rows, page_indptr, page_values, slots, cos, sin
        )
        branch, residual = self.layer(x, None, batch, pages)
        return branch, residual

    def normed(self, x: Tensor) -> Tensor:
        """x [M, hidden] → the head's input."""
        return self.norm(x)

    def spec(self, config: DecoderConfig) -> nn.spec.ModuleSpec:
        def int32(size: str) -> nn.spec.Tensor:
            return nn.spec.Tensor([size], "int32")

        x = nn.spec.Tensor(["num_tokens", config.hidden_size], "float32")
        pages = active().page_tensor(self.layer.self_attn.shape, "num_pages")
        packed = {"param_mode": "packed", "effect_mode": "none"}
        step = {
            "x": x,
            **{name: int32("num_tokens") for name in ("positions", "slots")},
            **{name: int32("num_tiles") for name in ("tile_seq", "tile_row", "tile_rows")},
            "page_indptr": int32("num_indptr"),
            "page_values": int32("num_page_values"),
            **{name: nn.spec.Tensor(["table", config.head_dim // 2], "float32") for name in ("cos", "sin")},
            "pages": nn.spec.Tensor(list(pages), "float32"),
            "$": packed,
        }
        return nn.spec.ModuleSpec.from_raw(
            {"inputs": dict(step), "output": dict(step), "normed": {"x": x, "$": packed}}, self
        )


class LayerProgram:
    """A compiled layer of one attention window, for `sequences` times `length` tokens a call at most."""

    def __init__(
        self, family: Family, config: DecoderConfig, window: int, kernels: KernelSet, sequences: int, length: int
    ) -> None:
        self.config, self.kernels, self.max_sequences, self.length = config, kernels, sequences, length
        with using(kernels):
            self._module = _Layer(family, config, window)
            self.page_shape = kernels.page_tensor(self._module.layer.self_attn.shape, self._pages_per_call)
            self.query_tile = kernels.query_tile(self._module.layer.self_attn.shape)
        self._tables = tuple(aligned(table) for table in rope.tables(config, length))

    @property
    def _pages_per_call(self) -> int:
        return self.max_sequences * -(-self.length // _PAGE_SIZE)

    def matrices(self) -> dict[str, Matrix]:
        """The layer's weight matrices by their names below the layer, in the order of `inputs`."""
        return dict(self._module.matrices())

    def norms(self) -> list[str]:
        return [name for name, _ in self._module.norms()]

    def compile(self, target: Mapping[str, Any], directory: Path) -> None:
        """Writes the library into `directory`."""
        with using(self.kernels):
            module, _ = self._module.export_tvm(self._module.spec(self.config))
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

    def set_weights(self, stored: Mapping[str, npt.NDArray[Any]], norm: Array | None = None) -> None:
        """The layer to run from now on: `<matrix>.weight`, `<matrix>.bias` and `<norm>.weight`, float32, by their names
        below the layer; and `norm`, the weight of the norm after the last layer, which only `normed` reads."""
        import tvm_ffi

        params: dict[str, npt.NDArray[Any]] = {}
        for name, matrix in self._module.matrices():
            parts = ("weight", "bias")
            own = {part: stored[f"{name}.{part}"] for part in parts if f"{name}.{part}" in stored}
            params |= {f"layer.{name}.{suffix}": array for suffix, array in matrix.arrange(own).items()}
        for name in self.norms():
            params[f"layer.{name}.weight"] = stored[f"{name}.weight"]
        params["norm.weight"] = np.ones(self.config.hidden_size, np.float32) if norm is None else norm
        names = [name for name, _ in self._module.named_parameters()]
        self._params = tvm_ffi.convert([self._tensor(aligned(params[name])) for name in names])

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
