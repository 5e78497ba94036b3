"""The GPU kernel set: the TIR of this folder behind the protocol in kernels/base.py, for one family of GPUs.

Activations and pages are float16 or float32, the residual sum is float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from tvm.relax.frontend.nn import Tensor, op
from tvm.tirx import PrimFunc

from ...platforms import Gpu
from ...quant.group import Storage
from ..base import AttentionShape, Batch, ChoiceArguments, NormKind, UnfusedWeight
from . import attention, elementwise, linear, sampling
from .elementwise import RESIDUAL
from .layout import WeightLayout


def _empty(*shape: Any, dtype: str) -> Tensor:
    return Tensor.placeholder(list(shape), dtype)


@dataclass(frozen=True)
class GpuWeight(UnfusedWeight):
    """A weight as it is stored: rows of packed words, scales in the dtype of activations."""

    layout: WeightLayout
    has_bias: bool
    gpu: Gpu

    @cached_property
    def params(self) -> dict[str, tuple[tuple[int, ...], str]]:
        return self.layout.params | ({"b": ((self.layout.n,), "float32")} if self.has_bias else {})

    def arrange(self, stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.layout.arrange(stored) | ({"b": stored["bias"]} if self.has_bias else {})

    def _linear(self, out_dtype: str) -> PrimFunc:
        name = f"linear_{self.layout.name}{'_bias' if self.has_bias else ''}_{out_dtype}"
        return linear.linear(name, self.layout, self.gpu, self.has_bias, out_dtype).without_attr("global_symbol")

    @cached_property
    def _to_activations(self) -> PrimFunc:
        return self._linear(self.layout.dtype)

    @cached_property
    def _to_logits(self) -> PrimFunc:
        return self._linear("float32")

    @cached_property
    def _rows(self) -> PrimFunc:
        return linear.rows_of(f"rows_{self.layout.name}", self.layout, self.gpu, RESIDUAL)

    def matmul(self, x: Tensor, params: Mapping[str, Tensor], out: Tensor | None = None) -> Tensor:
        inputs = [x, *params.values()]
        if out is None:
            result = _empty(x.shape[0], self.layout.n, dtype=self.layout.dtype)
            return op.tensor_ir_op(self._to_activations, "linear", inputs, result)
        return op.tensor_ir_inplace_op(self._to_logits, "linear", [*inputs, out], len(inputs), out)

    def lookup(self, ids: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        table = [params[name] for name in params if name != "b"]
        func = self._rows.without_attr("global_symbol")
        return op.tensor_ir_op(func, "embedding", [ids, *table], _empty(ids.shape[0], self.layout.k, dtype=RESIDUAL))


@dataclass(frozen=True)
class GpuKernels:
    """Kernels for one family of GPUs; activations and pages are of `compute_dtype`, the residual sum is float32.

    PrimFuncs are built once for each distinct shape, so a deep model traces quickly.
    """

    platform: str
    gpu: Gpu
    compute_dtype: str = "float16"
    _built: dict[tuple[Any, ...], Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        return f"{self.platform}-{self.gpu.name}-{self.compute_dtype.replace('float', 'f')}"

    @property
    def page_dtype(self) -> str:
        return self.compute_dtype

    def _once(self, make: Callable[..., Any], *key: Any) -> Any:
        whole = (make, *key)
        if whole not in self._built:
            self._built[whole] = make(*key)
        return self._built[whole]

    def _func(self, make: Callable[..., PrimFunc], name: str, *args: Any) -> PrimFunc:
        return self._once(make, name, *args).without_attr("global_symbol")

    def weight(self, out_features: int, in_features: int, storage: Storage, bias: bool) -> GpuWeight:
        layout = WeightLayout(out_features, in_features, storage, self.compute_dtype)
        return self._once(GpuWeight, layout, bias, self.gpu)

    def norm(
        self, x: Tensor, residual: Tensor | None, norm: NormKind, params: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        name = norm.name if residual is None else f"add_{norm.name}"
        kind = (self.compute_dtype, x.dtype, residual is not None)
        func = self._func(elementwise.norm, name, x.shape[1], norm, self.gpu, *kind)
        inputs = [x, *params] if residual is None else [x, residual, *params]
        outputs = (_empty(*x.shape, dtype=self.compute_dtype), _empty(*x.shape, dtype=RESIDUAL))
        return op.tensor_ir_op(func, name, inputs, outputs)

    def gated(self, gate_up: Tensor, activation: str) -> Tensor:
        width, name = gate_up.shape[1] // 2, f"gated_{activation}"
        func = self._func(elementwise.gated, name, width, activation, self.compute_dtype)
        return op.tensor_ir_op(func, name, [gate_up], _empty(gate_up.shape[0], width, dtype=self.compute_dtype))

    def take_rows(self, x: Tensor, residual: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        widths = (x.shape[1], residual.shape[1])
        func = self._func(elementwise.take_rows, "take_rows", widths, x.dtype)
        outputs = tuple(_empty(rows.shape[0], y.shape[1], dtype=y.dtype) for y in (x, residual))
        return op.tensor_ir_op(func, "take_rows", [x, residual, rows], outputs)

    def query_tile(self, shape: AttentionShape) -> int:
        return attention.query_tile(shape, self.gpu)

    def page_tensor(self, shape: AttentionShape, num_pages: Any) -> tuple[Any, ...]:
        return attention.page_tensor(shape, num_pages)

    def rope_append(
        self, qkv: Tensor, norms: tuple[Tensor, ...], eps: float, batch: Batch, pages: Tensor, shape: AttentionShape
    ) -> tuple[Tensor, Tensor]:
        func = self._func(
            attention.rope_append, "rope_append", shape, self.gpu, self.compute_dtype, eps if norms else None
        )
        inputs = [qkv, batch.positions, batch.slots, batch.cos, batch.sin, *norms, pages]
        q = _empty(qkv.shape[0], shape.heads * shape.head_dim, dtype=self.compute_dtype)
        pages, q = op.tensor_ir_inplace_op(func, "rope_append", inputs, [len(inputs) - 1, -1], (pages, q))
        return q, pages

    def attention(self, q: Tensor, batch: Batch, pages: Tensor, shape: AttentionShape, scale: float) -> Tensor:
        func = self._func(attention.paged_attention, "attention", shape, self.gpu, self.compute_dtype, scale)
        tiles = [batch.tile_seq, batch.tile_row, batch.tile_rows]
        inputs = [q, batch.positions, *tiles, batch.page_indptr, batch.page_values, pages]
        parts = (batch.tile_seq.shape[0], attention.PARTS, shape.heads)
        outputs = (
            _empty(*parts, shape.head_dim, dtype="float32"),
            _empty(*parts, 2, dtype="float32"),
            _empty(*q.shape, dtype=self.compute_dtype),
        )
        return op.tensor_ir_op(func, "attention", inputs, outputs)[2]

    def cap_logits(self, logits: Tensor, scale: float, cap: float) -> Tensor:
        func = self._func(elementwise.cap_logits, "cap_logits", int(logits.shape[1]), scale, cap)
        return op.tensor_ir_inplace_op(func, "cap_logits", [logits], 0, logits)

    def sample(self, logits: Tensor, choices: ChoiceArguments, chosen: Tensor) -> Tensor:
        rows, vocab = logits.shape[0], int(logits.shape[1])
        func = self._func(sampling.sample, "sample", vocab, self.gpu)
        its = [choices.knobs, choices.limits, choices.ids, choices.amounts, choices.masks]
        scratch = [_empty(*shape, dtype=dtype) for shape, dtype in sampling.scratch_shapes(rows, vocab)]
        inputs, outputs = [logits, *its, chosen], (chosen, *scratch)
        places = [len(inputs) - 1, *(-1 for _ in scratch)]
        return op.tensor_ir_inplace_op(func, "sample", inputs, places, outputs)[0]
