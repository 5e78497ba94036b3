"""OLMo 1 (Groeneveld et al. 2024): Llama with LayerNorms that learn nothing, and clipped queries, keys and values."""

from __future__ import annotations

from collections.abc import Iterator

from tvm.relax.frontend.nn import Tensor, op

from ..kernels.base import Batch, NormKind
from .base import CausalLM
from .config import ConfigKeys, DecoderConfig, LayerKind
from .layers import Attention, DecoderLayer, PageFormat
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY
from .parts import BiaslessLayerNorm, Fold, Norm

EPS = 1e-5  # no key of config.json


def Config(keys: ConfigKeys) -> DecoderConfig:
    bias = keys.flag("attention_bias", False)
    clip = keys.number("clip_qkv") if keys.has("clip_qkv") else 0.0
    return DecoderConfig.read(keys, family="olmo", norm_eps=EPS, qkv_bias=bias, o_bias=bias, extra={"clip": clip})


class WeightlessLayerNorm(BiaslessLayerNorm):
    def __init__(self, width: int, eps: float) -> None:
        Norm.__init__(self, width, NormKind(eps, centred=True, weight=False))


class ClippedAttention(Attention):
    """Queries, keys and values lie within ±clip; 0 is no limit."""

    def __init__(self, config: DecoderConfig, pages: PageFormat, kind: LayerKind) -> None:
        super().__init__(config, pages, kind)
        self.clip = float(config.extra["clip"])

    def prepare(self, qkv: Tensor, batch: Batch) -> Tensor:
        if not self.clip:
            return qkv
        low, high = (Tensor.from_scalar(limit, qkv.dtype) for limit in (-self.clip, self.clip))
        return op.minimum(op.maximum(qkv, low), high)

    def folds(self) -> Iterator[Fold]:
        """What is clipped must not be scaled before."""
        return iter(()) if self.clip else super().folds()


class OlmoLayer(DecoderLayer):
    ATTENTION = ClippedAttention
    NORM = WeightlessLayerNorm


class Model(CausalLM):
    LAYER = OlmoLayer


WEIGHTS = QKV_AND_GATE_UP
TINY = {**LLAMA_TINY, "architectures": ["OlmoForCausalLM"], "model_type": "olmo", "clip_qkv": 0.7}
