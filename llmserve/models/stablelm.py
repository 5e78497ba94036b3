"""StableLM 3B, 2 1.6B and 2 12B (Bellagente et al. 2024): Llama with LayerNorms and a quarter of each head rotated; the
12B has attention and MLP side by side, and a norm of its own for each query and key head."""

from __future__ import annotations

import numpy as np
from tvm.relax.frontend.nn import Tensor

from ..kernels.base import Batch
from ..weights.mapping import Fuse
from .base import CausalLM
from .config import ConfigKeys, DecoderConfig, LayerKind
from .layers import Attention, DecoderLayer, PageFormat, ParallelLayer
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY
from .parts import HeadNorm, LayerNorm


def Config(keys: ConfigKeys) -> DecoderConfig:
    keys = keys.filled(
        num_key_value_heads=32, layer_norm_eps=1e-5, partial_rotary_factor=0.25, max_position_embeddings=4096
    )
    return DecoderConfig.read(
        keys,
        partial_rotary=True,
        family="stablelm",
        norm_eps=keys.number("layer_norm_eps"),
        qkv_bias=keys.flag("use_qkv_bias", False),
        extra={
            "parallel": keys.flag("use_parallel_residual", False),
            "head_norms": keys.flag("qk_layernorm", False),
        },
    )


class StablelmAttention(Attention):
    """Queries and keys may be normed, each head by a weight of its own."""

    def __init__(self, config: DecoderConfig, pages: PageFormat, kind: LayerKind) -> None:
        super().__init__(config, pages, kind)
        self.head_norms = bool(config.extra["head_norms"])
        if self.head_norms:
            self.q_layernorm = self._head_norm(config, config.num_heads)
            self.k_layernorm = self._head_norm(config, config.num_kv_heads)

    def _head_norm(self, config: DecoderConfig, heads: int) -> HeadNorm:
        dim, order = config.head_dim, self.head_order
        if order is not None:
            order = (np.arange(heads)[:, None] * dim + order).reshape(-1)
        return HeadNorm(dim, config.norm_eps, (heads * dim,), order)

    def prepare(self, qkv: Tensor, batch: Batch) -> Tensor:
        return self.with_norms(qkv, self.q_layernorm, self.k_layernorm) if self.head_norms else qkv


class StablelmLayer(DecoderLayer):
    ATTENTION = StablelmAttention
    NORM = LayerNorm


class StablelmParallelLayer(ParallelLayer):
    ATTENTION = StablelmAttention
    NORM = LayerNorm


class Model(CausalLM):
    def __init__(self, config: DecoderConfig, pages: PageFormat) -> None:
        self.LAYER = StablelmParallelLayer if config.extra["parallel"] else StablelmLayer
        super().__init__(config, pages)


_NORM = "model.layers.{i}.self_attn.{which}_layernorm"
WEIGHTS = (*QKV_AND_GATE_UP, Fuse(f"{_NORM}.weight", (f"{_NORM}.norms.{{e}}.weight",)))
TINY = {
    **LLAMA_TINY,
    "architectures": ["StableLmForCausalLM"],
    "model_type": "stablelm",
    "num_attention_heads": 4,
    "layer_norm_eps": 1e-5,
    "partial_rotary_factor": 0.25,
    "use_qkv_bias": True,
    "use_parallel_residual": True,
    "qk_layernorm": True,
}
