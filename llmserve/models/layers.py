"""Attention, MLPs and the layers that decoders are made of, over the active kernel set.

Nothing here knows a family, a scheme or a platform. Fused operators come from `kernels.active()`; what a family adds
may be plain operators. Each layer declares its own shape and the producers of its channels (`folds`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op

from ..kernels.base import AttentionShape, Batch, active
from .activations import activate
from .config import DecoderConfig, LayerKind
from .parts import BiaslessLayerNorm, Embedding, Fold, LayerNorm, Linear, Norm, Order, RMSNorm, picked, scaled
from .rope import pairing


@dataclass(frozen=True)
class PageFormat:
    """The KV cache as the engine sets it: tokens in a page, and the dtype of keys and values."""

    size: int = 16
    dtype: str = "float16"


class Attention(nn.Module):
    """Grouped-query attention over pages; q, k and v come from one matmul.

    Kernels rotate pairs (i, i + head_dim / 2). Other rotations (neighbouring pairs, a part of the head) are that one in
    another order of each query's and key's elements, which the rows of `qkv_proj` are put into: `rope.pairing`.
    """

    def __init__(self, config: DecoderConfig, pages: PageFormat, kind: LayerKind) -> None:
        heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.shape = AttentionShape(
            *(heads, kv_heads, dim, pages.size, kind.window, pages.dtype),
            tables=max(1, len(config.rope)),
            table=kind.rope if config.rope else None,
            softcap=config.attention_softcap,
        )
        self.eps = config.norm_eps
        self.scale = config.attention_scale or dim**-0.5
        self.head_order = self._head_order(config)
        parts = (heads * dim, kv_heads * dim, kv_heads * dim)
        self.qkv_proj = Linear(parts, config.hidden_size, config.qkv_bias, self._qkv_order(config))
        self.o_proj = Linear(config.hidden_size, heads * dim, config.o_bias)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.q_norm = RMSNorm(dim, self.eps, self.head_order)
            self.k_norm = RMSNorm(dim, self.eps, self.head_order)

    def forward(
        self, x: Tensor, residual: Tensor | None, norm: Norm | None, batch: Batch, pages: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(attention over norm(x + residual), x + residual), both of `rows` only if they are given."""
        qkv, residual = self.qkv_proj.normed(x, residual, norm)
        x = self.attend(qkv, batch, pages)
        if rows is not None:
            x, residual = active().take_rows(x, residual, rows)
        return self.o_proj(x), residual

    def attend(self, qkv: Tensor, batch: Batch, pages: Tensor) -> Tensor:
        """qkv [M, (heads + 2 kv_heads) * D] → the input of `o_proj` [M, heads * D]; keys and values go to the pages."""
        norms = (self.q_norm.weight, self.k_norm.weight) if self.qk_norm else ()
        q, pages = active().rope_append(self.prepare(qkv, batch), norms, self.eps, batch, pages, self.shape)
        return active().attention(self.temper(q, batch), batch, pages, self.shape, self.scale)

    def prepare(self, qkv: Tensor, batch: Batch) -> Tensor:
        """For a family to change queries, keys and values before they are rotated."""
        return qkv

    def temper(self, q: Tensor, batch: Batch) -> Tensor:
        """For a family to change rotated queries [M, heads * D]."""
        return q

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(q [M, heads * D], k and v [M, kv_heads * D])."""
        q, kv = self.shape.heads * self.shape.head_dim, self.shape.kv_heads * self.shape.head_dim
        first, second, third = op.split(qkv, [q, q + kv], axis=1)
        return first, second, third

    def with_norms(self, qkv: Tensor, q_norm: nn.Module, k_norm: nn.Module) -> Tensor:
        """qkv with norms over its queries and over its keys that no kernel computes; for `prepare`."""
        q, k, v = self.split(qkv)
        return op.concat([q_norm(q), k_norm(k), v], dim=1)

    def _head_order(self, config: DecoderConfig) -> Order | None:
        """Of one head's elements, if it is not the checkpoint's."""
        dims = {rope.dim or config.head_dim for rope in config.rope}
        assert len(dims) <= 1, "tables that turn different parts of a head need different orders"
        order = pairing(config.head_dim, dims.pop() if dims else config.head_dim, config.interleaved)
        return None if (order == np.arange(config.head_dim)).all() else order

    def _qkv_order(self, config: DecoderConfig) -> Order | None:
        """Of the rows of `qkv_proj`: each query's and key's elements in `head_order`, values as they are."""
        if self.head_order is None:
            return None
        turned = (
            np.arange(config.num_heads + config.num_kv_heads)[:, None] * config.head_dim + self.head_order
        ).reshape(-1)
        values = np.arange(config.num_kv_heads * config.head_dim)
        return np.concatenate([turned, len(turned) + values])

    def folds(self) -> Iterator[Fold]:
        """Several channels of `o_proj` come from one row of v in grouped-query attention, and share a scale."""
        shape = self.shape
        value = (shape.heads + shape.kv_heads) * shape.head_dim  # v's first row
        kv = np.arange(shape.heads) // shape.group
        rows = (value + kv[:, None] * shape.head_dim + np.arange(shape.head_dim)).reshape(-1)
        yield Fold("o_proj", "qkv_proj", rows)


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)) (Shazeer 2020); gate and up come from one matmul."""

    first = "gate_up_proj"

    def __init__(self, config: DecoderConfig) -> None:
        width, hidden = config.intermediate_size, config.hidden_size
        self.activation = config.activation
        self.gate_up_proj = Linear((width, width), hidden, config.mlp_bias)
        self.down_proj = Linear(hidden, width, config.mlp_bias)

    def forward(self, x: Tensor, residual: Tensor, norm: Norm | None) -> tuple[Tensor, Tensor]:
        """(MLP of norm(x + residual), x + residual)."""
        gate_up, residual = self.gate_up_proj.normed(x, residual, norm)
        return self.down_proj.gated(gate_up, self.activation), residual

    def of(self, x: Tensor) -> Tensor:
        """MLP of x, which has been normed."""
        return self.down_proj.gated(self.gate_up_proj(x), self.activation)

    def folds(self) -> Iterator[Fold]:
        width = self.down_proj.in_features
        yield Fold("down_proj", "gate_up_proj", width + np.arange(width))


class PlainMLP(nn.Module):
    """down(activation(up(x)))."""

    first = "up_proj"

    def __init__(self, config: DecoderConfig) -> None:
        self.activation = config.activation
        self.up_proj = Linear(config.intermediate_size, config.hidden_size, config.mlp_bias)
        self.down_proj = Linear(config.hidden_size, config.intermediate_size, config.mlp_bias)

    def forward(self, x: Tensor, residual: Tensor, norm: Norm | None) -> tuple[Tensor, Tensor]:
        """(MLP of norm(x + residual), x + residual)."""
        up, residual = self.up_proj.normed(x, residual, norm)
        return self.down_proj(self.activate(up)), residual

    def of(self, x: Tensor) -> Tensor:
        """MLP of x, which has been normed."""
        return self.down_proj(self.activate(self.up_proj(x)))

    def activate(self, x: Tensor) -> Tensor:
        return activate(self.activation, x)

    def folds(self) -> Iterator[Fold]:
        yield from ()


class DecoderLayer(nn.Module):
    """Attention, then an MLP, each a branch that is added to the residual sum.

    The sum travels beside the branch, and norms belong to the matmuls after them, so that one pass over a row adds,
    normalises and rounds it.

    Attributes:
        ATTENTION, MLP, NORM: what it is made of; for a family to replace.
        NORMS: names of the norms before and after the attention, before and after the MLP; None for none. Those after
            are of the branch alone.
    """

    ATTENTION: type[Attention] = Attention
    MLP: type[GatedMLP | PlainMLP] = GatedMLP
    NORM: type[RMSNorm | LayerNorm | BiaslessLayerNorm] = RMSNorm
    NORMS: tuple[str | None, str | None, str | None, str | None] = (
        *("input_layernorm", None),
        *("post_attention_layernorm", None),
    )

    def __init__(self, config: DecoderConfig, pages: PageFormat, kind: LayerKind) -> None:
        self.residual_scale = config.residual_scale
        before, after, *of_mlp = self.NORMS
        self._add_norms(config, before)
        self.self_attn = self.ATTENTION(config, pages, kind)
        self._add_norms(config, after, *of_mlp)
        self.mlp = self.MLP(config)

    def _add_norms(self, config: DecoderConfig, *names: str | None) -> None:
        for name in filter(None, names):
            setattr(self, name, self.NORM(config.hidden_size, config.norm_eps))

    def norm(self, place: int) -> Norm | None:
        """The norm at a place of NORMS."""
        name = self.NORMS[place]
        return None if name is None else getattr(self, name)

    def forward(
        self, x: Tensor, residual: Tensor | None, batch: Batch, pages: Tensor, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """A branch and the residual to add it to: x and residual [M, hidden] (a residual of None is nothing) → the
        same after this layer, of `rows` only if they are given."""
        x, residual = self.self_attn(x, residual, self.norm(0), batch, pages, rows)
        x, residual = self.mlp(self._branch(x, self.norm(1)), residual, self.norm(2))
        return self._branch(x, self.norm(3)), residual

    def _branch(self, x: Tensor, norm: Norm | None) -> Tensor:
        return scaled(x if norm is None else norm(x), self.residual_scale)

    def folds(self) -> Iterator[Fold]:
        """The channels that calibration may scale without a change of the layer's output."""
        width = np.arange(self.self_attn.qkv_proj.in_features)
        for norm, matrix in ((self.NORMS[0], "self_attn.qkv_proj"), (self.NORMS[2], f"mlp.{self.MLP.first}")):
            if norm is not None and getattr(self, norm).kind.weight:
                yield Fold(matrix, norm, width)
        for name, part in (("self_attn", self.self_attn), ("mlp", self.mlp)):
            for fold in part.folds():
                yield Fold(f"{name}.{fold.consumer}", f"{name}.{fold.producer}", fold.rows)


class ParallelLayer(DecoderLayer):
    """Attention and MLP side by side: x + attention(norm(x)) + mlp(norm(x)), of one norm, or of a norm each where NORMS
    names one before the MLP (Wang & Komatsuzaki 2021)."""

    NORMS: tuple[str | None, str | None, str | None, str | None] = ("input_layernorm", None, None, None)

    def forward(
        self, x: Tensor, residual: Tensor | None, batch: Batch, pages: Tensor, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        first, second = self.norm(0), self.norm(2)
        assert first is not None
        normed, residual = first.both(x, residual)
        heads = self.self_attn.attend(self.self_attn.qkv_proj(normed), batch, pages)
        if rows is not None:
            heads, residual = active().take_rows(heads, residual, rows)
            normed = picked(normed, rows)
        if second is not None:
            normed = second(residual)
        return scaled(self.self_attn.o_proj(heads) + self.mlp.of(normed), self.residual_scale), residual

    def folds(self) -> Iterator[Fold]:
        """A norm that feeds two matrices cannot be scaled for one of them."""
        shared = self.NORMS[0] if self.NORMS[2] is None else None
        return (fold for fold in super().folds() if fold.producer != shared)


class Decoder(nn.Module):
    """Embedding, layers and the last norm."""

    def __init__(self, config: DecoderConfig, pages: PageFormat, layer: type[DecoderLayer]) -> None:
        self.embedding_scale = config.embedding_scale
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([layer(config, pages, kind) for kind in config.layers])
        self.norm = layer.NORM(config.hidden_size, config.norm_eps)

    def begin(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rows [M, hidden] of the embedding → the first layer's input. For a family to add to."""
        return scaled(x, self.embedding_scale)

    def forward(self, batch: Batch, pages: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Of the batch's logit rows, before the last norm: (branch, residual) [R, hidden], whose sum it is to take.

        Of other rows the last layer owes nothing but keys and values, so it drops them as soon as it has these.
        """
        x, residual = self.begin(self.embed_tokens.lookup(batch.token_ids), batch.positions), None
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            x, residual = layer(x, residual, batch, pages[i], batch.logit_rows if i == last else None)
        return x, residual
