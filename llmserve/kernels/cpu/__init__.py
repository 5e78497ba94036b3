"""The CPU kernel set: the TIR of this folder behind the protocol in kernels/base.py, for one instruction set.

Activations are float32 and pages float16. Calls have names by operator, which cost tables are made from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from tvm.relax.frontend.nn import Tensor, op
from tvm.tirx import PrimFunc

from ...quant.group import GroupFormat, Storage
from ..base import AttentionShape, Batch, ChoiceArguments, NormKind
from . import attention, elementwise, layout, linear, sampling
from .isa import Isa
from .prologue import GatePrologue, NormPrologue, Prologue


def _empty(*shape: Any, dtype: str = "float32") -> Tensor:
    return Tensor.placeholder(list(shape), dtype)


def _kind(prologue: Prologue) -> str:
    """A prologue's part of a kernel's name."""
    if isinstance(prologue, NormPrologue):
        return "norm_"
    return "" if prologue is None else f"gate_{prologue.activation}_"


@dataclass(frozen=True)
class CpuWeight:
    """A weight in tiles of the instruction set's rows."""

    out_features: int
    in_features: int
    storage: Storage
    has_bias: bool
    isa: Isa
    _built: dict[Prologue, PrimFunc] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def params(self) -> dict[str, tuple[tuple[int, ...], str]]:
        rows, count = self.isa.rows, layout.tiles(self.out_features, self.isa.rows)
        if isinstance(self.storage, GroupFormat):
            block = layout.block_bytes(self.storage, self.isa.rows)
            params: dict[str, tuple[tuple[int, ...], str]] = {
                "q": ((count, self.storage.groups(self.in_features), block), "uint8")
            }
        else:
            params = {"w": ((count, self.in_features, rows), self.storage)}
        if self.has_bias:
            params["b"] = ((count * rows,), "float32")
        return params

    def arrange(self, stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        out: dict[str, np.ndarray] = {}
        if isinstance(self.storage, GroupFormat):
            parts = stored["q_weight"], stored["q_scale"], self.storage, self.isa.rows, stored.get("q_zero")
            out["q"] = layout.tile_quantized(*parts)
        else:
            out["w"] = layout.tile_float(stored["weight"], self.isa.rows)
        if self.has_bias:
            out["b"] = np.zeros(self.params["b"][0], np.float32)
            out["b"][: self.out_features] = stored["bias"]
        return out

    @cached_property
    def _name(self) -> str:
        kind = self.storage.name if isinstance(self.storage, GroupFormat) else self.storage
        return f"{kind}_{self.out_features}x{self.in_features}"

    def _linear(self, prologue: Prologue) -> PrimFunc:
        if prologue not in self._built:
            name = f"linear_{_kind(prologue)}{self._name}{'_bias' if self.has_bias else ''}"
            make: Callable[..., PrimFunc] = (
                linear.quantized_linear if isinstance(self.storage, GroupFormat) else linear.float_linear
            )
            shape = (self.out_features, self.in_features)
            self._built[prologue] = make(name, *shape, self.storage, self.isa, self.has_bias, prologue)
        return self._built[prologue].without_attr("global_symbol")

    @cached_property
    def _rows(self) -> PrimFunc:
        make: Callable[..., PrimFunc] = (
            elementwise.quantized_rows if isinstance(self.storage, GroupFormat) else elementwise.float_rows
        )
        return make(f"rows_{self._name}", self.out_features, self.in_features, self.storage, self.isa)

    def matmul(self, x: Tensor, params: Mapping[str, Tensor], out: Tensor | None = None) -> Tensor:
        (y,) = self._product("linear", None, [x], params, out, ())
        return y

    def normed_matmul(
        self,
        x: Tensor,
        residual: Tensor | None,
        norm: NormKind,
        norm_params: Sequence[Tensor],
        params: Mapping[str, Tensor],
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        if residual is None:
            (y,) = self._product("norm_linear", NormPrologue(norm, False), [x, *norm_params], params, out, ())
            return y, x
        inputs, sums = [x, residual, *norm_params], (_empty(*x.shape),)
        y, both = self._product("add_norm_linear", NormPrologue(norm, True), inputs, params, out, sums)
        return y, both

    def gated_matmul(self, gate_up: Tensor, activation: str, params: Mapping[str, Tensor]) -> Tensor:
        (y,) = self._product("gated_linear", GatePrologue(activation), [gate_up], params, None, ())
        return y

    def _product(
        self,
        name: str,
        prologue: Prologue,
        inputs: list[Tensor],
        params: Mapping[str, Tensor],
        out: Tensor | None,
        others: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        """Emit the call under `name`, for cost tables; returns the product and what else the kernel writes."""
        func, inputs = self._linear(prologue), [*inputs, *params.values()]
        if out is None:
            outputs = (_empty(inputs[0].shape[0], self.out_features), *others)
            made = op.tensor_ir_op(func, name, inputs, outputs if others else outputs[0])
        else:
            places = [len(inputs), *(-1 for _ in others)]
            made = op.tensor_ir_inplace_op(func, name, [*inputs, out], places, (out, *others) if others else out)
        return made if others else (made,)

    def lookup(self, ids: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        func = self._rows.without_attr("global_symbol")
        table = [params[name] for name in params if name != "b"]
        return op.tensor_ir_op(func, "embedding", [ids, *table], _empty(ids.shape[0], self.in_features))


@dataclass(frozen=True)
class CpuKernels:
    """Kernels for one instruction set; activations are float32, pages float16.

    PrimFuncs are built once for each distinct shape, so a deep model traces quickly.
    """

    isa: Isa
    compute_dtype: str = "float32"
    _built: dict[tuple[Any, ...], Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        return f"cpu-{self.isa.name}"

    @property
    def page_dtype(self) -> None:
        return None

    def _once(self, make: Callable[..., Any], *key: Any) -> Any:
        whole = (make, *key)
        if whole not in self._built:
            self._built[whole] = make(*key)
        return self._built[whole]

    def _func(self, make: Callable[..., PrimFunc], name: str, *args: Any) -> PrimFunc:
        return self._once(make, name, *args).without_attr("global_symbol")

    def weight(self, out_features: int, in_features: int, storage: Storage, bias: bool) -> CpuWeight:
        return self._once(CpuWeight, out_features, in_features, storage, bias, self.isa)

    def norm(
        self, x: Tensor, residual: Tensor | None, norm: NormKind, params: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        name = norm.name if residual is None else f"add_{norm.name}"
        func = self._func(
            elementwise.prologue_alone, name, x.shape[1], self.isa, NormPrologue(norm, residual is not None)
        )
        if residual is None:
            return op.tensor_ir_op(func, name, [x, *params], _empty(*x.shape)), x
        return op.tensor_ir_op(func, name, [x, residual, *params], (_empty(*x.shape), _empty(*x.shape)))

    def gated(self, gate_up: Tensor, activation: str) -> Tensor:
        width = gate_up.shape[1] // 2
        func = self._func(elementwise.prologue_alone, f"gated_{activation}", width, self.isa, GatePrologue(activation))
        return op.tensor_ir_op(func, f"gated_{activation}", [gate_up], _empty(gate_up.shape[0], width))

    def take_rows(self, x: Tensor, residual: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        widths = (x.shape[1], residual.shape[1])
        func = self._func(elementwise.take_rows, "take_rows", widths, self.isa)
        outputs = tuple(_empty(rows.shape[0], width) for width in widths)
        return op.tensor_ir_op(func, "take_rows", [x, residual, rows], outputs)

    def query_tile(self, shape: AttentionShape) -> int:
        return attention.query_tile(shape)

    def page_tensor(self, shape: AttentionShape, num_pages: Any) -> tuple[Any, ...]:
        return attention.page_tensor(shape, num_pages)

    def rope_append(
        self, qkv: Tensor, norms: tuple[Tensor, ...], eps: float, batch: Batch, pages: Tensor, shape: AttentionShape
    ) -> tuple[Tensor, Tensor]:
        func = self._func(attention.rope_append, "rope_append", shape, self.isa, eps if norms else None)
        inputs = [qkv, batch.positions, batch.slots, batch.cos, batch.sin, *norms, pages]
        q = _empty(qkv.shape[0], shape.heads * shape.head_dim)
        pages, q = op.tensor_ir_inplace_op(func, "rope_append", inputs, [len(inputs) - 1, -1], (pages, q))
        return q, pages

    def attention(self, q: Tensor, batch: Batch, pages: Tensor, shape: AttentionShape, scale: float) -> Tensor:
        func = self._func(attention.paged_attention, "attention", shape, self.isa, scale)
        tiles = [batch.tile_seq, batch.tile_row, batch.tile_rows]
        inputs = [q, batch.positions, *tiles, batch.page_indptr, batch.page_values, pages]
        return op.tensor_ir_op(func, "attention", inputs, _empty(*q.shape))

    def cap_logits(self, logits: Tensor, scale: float, cap: float) -> Tensor:
        func = self._func(elementwise.cap_logits, "cap_logits", int(logits.shape[1]), scale, cap, self.isa)
        return op.tensor_ir_inplace_op(func, "cap_logits", [logits], 0, logits)

    def sample(self, logits: Tensor, choices: ChoiceArguments, chosen: Tensor) -> Tensor:
        rows, vocab = logits.shape[0], int(logits.shape[1])
        func = self._func(sampling.sample, "sample", vocab, self.isa)
        its = [choices.knobs, choices.limits, choices.ids, choices.amounts, choices.masks]
        scratch = [_empty(*shape, dtype=dtype) for shape, dtype in sampling.scratch_shapes(rows, vocab)]
        inputs, outputs = [logits, *its, chosen], (chosen, *scratch)
        places = [len(inputs) - 1, *(-1 for _ in scratch)]
        return op.tensor_ir_inplace_op(func, "sample", inputs, places, outputs)[0]
