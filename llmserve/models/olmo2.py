"""OLMo 2 (Walsh et al. 2024): Llama with norms after each branch in place of before it, and norms over all queries and
all keys of a token."""

from __future__ import annotations

import numpy as np
from tvm.relax.frontend.nn import Tensor

from ..kernels.base import Batch
from .base import CausalLM
from .config import ConfigKeys, DecoderConfig, LayerKind
from .layers import Attention, DecoderLayer, PageFormat
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY
from .parts import Order, RMSNorm


class WideNormAttention(Attention):
    """Attention with an RMS norm over a token's queries of all heads, and one over its keys, before rotation."""

    def __init__(self, config: DecoderConfig, pages: PageFormat, kind: LayerKind) -> None:
        super().__init__(config, pages, kind)
        widths = (self.shape.heads * self.shape.head_dim, self.shape.kv_heads * self.shape.head_dim)
        self.q_norm, self.k_norm = (RMSNorm(width, self.eps, self._turned(width)) for width in widths)

    def _turned(self, width: int) -> Order | None:
        """`head_order` for each of the heads that a norm is over."""
        if self.head_order is None:
            return None
        return (np.arange(0, width, self.shape.head_dim)[:, None] + self.head_order).reshape(-1)

    def prepare(self, qkv: Tensor, batch: Batch) -> Tensor:
        return self.with_norms(qkv, self.q_norm, self.k_norm)


class PostNormLayer(DecoderLayer):
    """A norm after attention and MLP each, of the branch alone, and none before."""

    NORMS = (*(None, "post_attention_layernorm"), *(None, "post_feedforward_layernorm"))


class Olmo2Layer(PostNormLayer):
    ATTENTION = WideNormAttention


def Config(keys: ConfigKeys) -> DecoderConfig:
    bias = keys.flag("attention_bias", False)
    return DecoderConfig.read(keys.filled(rms_norm_eps=1e-5), family="olmo2", qkv_bias=bias, o_bias=bias)


class Model(CausalLM):
    LAYER = Olmo2Layer


WEIGHTS = QKV_AND_GATE_UP
TINY = {
    **LLAMA_TINY,
    "architectures": ["Olmo2ForCausalLM"],
    "model_type": "olmo2",
    "num_attention_heads": 4,
}
