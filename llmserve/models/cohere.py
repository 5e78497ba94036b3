"""Command R and R+ (Cohere 2024): attention and MLP side by side after one LayerNorm, neighbouring pairs rotated,
logits scaled; R+ norms each query and key head."""

from __future__ import annotations

from tvm.relax.frontend.nn import Tensor, op

from ..kernels.base import Batch
from .base import CausalLM
from .config import ConfigKeys, DecoderConfig, LayerKind
from .layers import Attention, PageFormat, ParallelLayer
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY
from .parts import BiaslessLayerNorm, HeadNorm


def cohere_keys(keys: ConfigKeys) -> ConfigKeys:
    """With the defaults of this line of families."""
    # Released configs have the length that was trained first, and this.
    keys = keys.renamed(max_position_embeddings="model_max_length")
    return keys.filled(tie_word_embeddings=True, layer_norm_eps=1e-5, logit_scale=0.0625, max_position_embeddings=8192)


def Config(keys: ConfigKeys) -> DecoderConfig:
    keys = cohere_keys(keys).filled(rope_theta=500000.0)
    bias = keys.flag("attention_bias", False)
    return DecoderConfig.read(
        keys,
        family="cohere",
        interleaved=True,
        norm_eps=keys.number("layer_norm_eps"),
        logit_scale=keys.number("logit_scale"),
        qkv_bias=bias,
        o_bias=bias,
        extra={"head_norms": keys.flag("use_qk_norm", False)},
    )


class PairedHeadNorm(HeadNorm):
    """Weights [heads, dim] of elements whose neighbours are rotated together: in our order, those that come first in a
    pair are before the others."""

    def by_head(self, numbers: Tensor) -> Tensor:
        pairs = op.reshape(numbers, (-1, self.dim // 2, 2))
        return super().by_head(op.permute_dims(pairs, [0, 2, 1]))


class CohereAttention(Attention):
    """Queries and keys may be normed, each head by a weight of its own."""

    def __init__(self, config: DecoderConfig, pages: PageFormat, kind: LayerKind) -> None:
        super().__init__(config, pages, kind)
        self.head_norms = bool(config.extra.get("head_norms"))
        if self.head_norms:
            dim, eps = config.head_dim, config.norm_eps
            self.q_norm = PairedHeadNorm(dim, eps, (config.num_heads, dim))
            self.k_norm = PairedHeadNorm(dim, eps, (config.num_kv_heads, dim))

    def prepare(self, qkv: Tensor, batch: Batch) -> Tensor:
        return self.with_norms(qkv, self.q_norm, self.k_norm) if self.head_norms else qkv


class CohereLayer(ParallelLayer):
    ATTENTION = CohereAttention
    NORM = BiaslessLayerNorm


class Model(CausalLM):
    LAYER = CohereLayer


WEIGHTS = QKV_AND_GATE_UP
TINY = {
    **LLAMA_TINY,
    "architectures": ["CohereForCausalLM"],
    "model_type": "cohere",
    "layer_norm_eps": 1e-5,
    "logit_scale": 0.5,
    "use_qk_norm": True,
    "rope_theta": 50000.0,
    "tie_word_embeddings": True,
}
