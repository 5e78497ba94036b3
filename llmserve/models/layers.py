"""The parts that decoder families are made of, as tvm modules over the active kernel set.

Nothing here knows a family, a scheme or a platform: `Linear` and `Embedding` hold no weights until `bind` gives them
the layout that scheme and platform agreed on, and every operator comes from `kernels.active()`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor

from ..kernels.base import AttentionShape, Batch, Weight, active
from .config import DecoderConfig


def walk(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every module below `module` with its dotted name, in the order in which parameters are packed."""
    children = enumerate(module) if isinstance(module, nn.ModuleList) else vars(module).items()
    for name, child in children:
        if isinstance(child, nn.Module):
            yield f"{prefix}{name}", child
            yield from walk(child, f"{prefix}{name}.")


class Matrix(nn.Module):
    """A weight matrix [out, in] (and bias) that is stored as a scheme says."""

    def __init__(self, out_features: int, in_features: int, bias: bool = False) -> None:
        self.out_features, self.in_features, self.has_bias = out_features, in_features, bias
        self.weight_kernel: Weight | None = None

    def bind(self, weight: Weight) -> None:
        """Create the parameters of this layout; must happen before the module is exported."""
        self.weight_kernel = weight
        for name, (shape, dtype) in weight.params.items():
            setattr(self, name, nn.Parameter(shape, dtype))

    def arrange(self, stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The parameters' values from the stored tensors, see `Weight.arrange`."""
        return self._bound()[0].arrange(stored)

    def _bound(self) -> tuple[Weight, dict[str, Tensor]]:
        assert self.weight_kernel is not None, "bind() comes first"
        return self.weight_kernel, {name: getattr(self, name) for name in self.weight_kernel.params}


class Linear(Matrix):
    """x [M, in] → [M, out]."""

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        kernel, params = self._bound()
        return kernel.matmul(x, params, out)

    def normed(
        self, x: Tensor, residual: Tensor | None, norm: RMSNorm, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(the product with norm(x + residual), x + residual); a residual of None adds nothing."""
        kernel, params = self._bound()
        return kernel.normed_matmul(x, residual, norm.weight, norm.eps, params, out)

    def gated(self, gate_up: Tensor) -> Tensor:
        """The product with silu(gate) * up, where gate_up [M, 2 * in] holds gate, then up."""
        kernel, params = self._bound()
        return kernel.gated_matmul(gate_up, params)


class Embedding(Linear):
    """Token ids [M] → rows [M, in]; the same matrix can serve as the output head."""

    def lookup(self, ids: Tensor) -> Tensor:
        kernel, params = self._bound()
        return kernel.lookup(ids, params)


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        self.width, self.eps = width, eps
        self.weight = nn.Parameter((width,), "float32")

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """norm(x + residual); where a product follows, it does that itself (`Linear.normed`)."""
        if residual is None:
            return active().rms_norm(x, self.weight, self.eps)
        return active().add_rms_norm(x, residual, self.weight, self.eps)[0]


@dataclass(frozen=True)
class PageFormat:
    """The KV cache as the engine sets it: tokens in a page, and the dtype of keys and values."""

    size: int = 16
    dtype: str = "float16"


class Attention(nn.Module):
    """Grouped-query attention over pages; q, k and v come from one matmul."""

    def __init__(self, config: DecoderConfig, pages: PageFormat, window: int) -> None:
        heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.shape = AttentionShape(heads, kv_heads, dim, pages.size, window, pages.dtype)
        self.eps = config.rms_norm_eps
        self.qkv_proj = Linear((heads + 2 * kv_heads) * dim, config.hidden_size, config.qkv_bias)
        self.o_proj = Linear(config.hidden_size, heads * dim, config.o_bias)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.q_norm = RMSNorm(dim, self.eps)
            self.k_norm = RMSNorm(dim, self.eps)

    def forward(
        self, x: Tensor, residual: Tensor | None, norm: RMSNorm, batch: Batch, pages: Tensor, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(attention over norm(x + residual), x + residual), both of `rows` only if they are given."""
        norms = (self.q_norm.weight, self.k_norm.weight) if self.qk_norm else ()
        qkv, residual = self.qkv_proj.normed(x, residual, norm)
        q, pages = active().rope_append(qkv, norms, self.eps, batch, pages, self.shape)
        x = active().attention(q, batch, pages, self.shape, self.shape.head_dim**-0.5)
        if rows is not None:
            x, residual = active().take_rows(x, residual, rows)
        return self.o_proj(x), residual


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020); gate and up come from one matmul."""

    def __init__(self, config: DecoderConfig) -> None:
        self.gate_up_proj = Linear(2 * config.intermediate_size, config.hidden_size, config.mlp_bias)
        self.down_proj = Linear(config.hidden_size, config.intermediate_size, config.mlp_bias)

    def forward(self, x: Tensor, residual: Tensor, norm: RMSNorm) -> tuple[Tensor, Tensor]:
        """(MLP of norm(x + residual), x + residual)."""
        gate_up, residual = self.gate_up_proj.normed(x, residual, norm)
        return self.down_proj.gated(gate_up), residual


class DecoderLayer(nn.Module):
    """Pre-norm block. The residual sum travels beside the branch, and norms belong to the matmuls after them, so that
    one pass over a row adds, normalises and rounds it."""

    def __init__(self, config: DecoderConfig, pages: PageFormat, window: int) -> None:
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, pages, window)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config)

    def forward(
        self, x: Tensor, residual: Tensor | None, batch: Batch, pages: Tensor, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """A branch and the residual to add it to: x and residual [M, hidden] (a residual of None is nothing) → the
        same after this layer, of `rows` only if they are given."""
        x, residual = self.self_attn(x, residual, self.input_layernorm, batch, pages, rows)
        return self.mlp(x, residual, self.post_attention_layernorm)


class Decoder(nn.Module):
    def __init__(self, config: DecoderConfig, pages: PageFormat) -> None:
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([DecoderLayer(config, pages, window) for window in config.window])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, batch: Batch, pages: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Of the batch's logit rows, before the last norm: (branch, residual) [R, hidden], whose sum it is to take.

        Of other rows the last layer owes nothing but keys and values, so it drops them as soon as it has these.
        """
        x, residual = self.embed_tokens.lookup(batch.token_ids), None
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            x, residual = layer(x, residual, batch, pages[i], batch.logit_rows if i == last else None)
        return x, residual
