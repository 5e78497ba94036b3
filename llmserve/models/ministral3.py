"""Ministral 3 (Mistral AI 2025): Mistral with yarn, and queries that grow with the logarithm of their position."""

from __future__ import annotations

import math

from tvm.relax.frontend.nn import Tensor, op

from ..kernels.base import Batch
from .base import CausalLM
from .config import ConfigKeys, DecoderConfig, LayerKind, RopeConfig, equal_layers, head_dimension
from .layers import Attention, DecoderLayer, PageFormat
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY

_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


class TemperedAttention(Attention):
    """Attention of queries times 1 + β · ln(1 + ⌊position / length⌋): those of later positions are sharper."""

    def __init__(self, config: DecoderConfig, pages: PageFormat, kind: LayerKind) -> None:
        super().__init__(config, pages, kind)
        self.beta, self.length = config.extra["beta"], config.extra["length"]

    def temper(self, q: Tensor, batch: Batch) -> Tensor:
        # The half keeps float32's quotient of multiples on the right side of a whole number.
        turns = op.floor((batch.positions.astype("float32") + 0.5) / self.length)
        factor = op.log(turns + 1.0) * self.beta + 1.0
        return q * op.unsqueeze(factor, 1).astype(q.dtype)


class Ministral3Layer(DecoderLayer):
    ATTENTION = TemperedAttention


def Config(keys: ConfigKeys) -> DecoderConfig:
    keys = keys.assumed(head_dim=128, num_key_value_heads=8).filled(rms_norm_eps=1e-5, max_position_embeddings=262144)
    if not keys.table("rope_parameters") and not keys.table("rope_scaling"):
        keys = ConfigKeys({**keys.raw, "rope_parameters": _ROPE}, keys.source)
    rope = RopeConfig.read(keys, head_dimension(keys))
    inside = ConfigKeys(rope.parameters, f"{keys.source}: rope type {rope.kind!r}")
    extra = {
        "beta": inside.number("llama_4_scaling_beta", low=-math.inf),
        "length": inside.integer("original_max_position_embeddings"),
    }
    return DecoderConfig.read(keys, family="ministral3", rope=(rope,), layers=equal_layers(keys), extra=extra)


class Model(CausalLM):
    LAYER = Ministral3Layer


WEIGHTS = QKV_AND_GATE_UP
TINY = {
    **LLAMA_TINY,
    "architectures": ["Ministral3ForCausalLM"],
    "model_type": "ministral3",
    "head_dim": 64,
    "num_attention_heads": 4,
    "rope_parameters": {
        **_ROPE,
        "rope_theta": 1000.0,
        "original_max_position_embeddings": 16,
        "llama_4_scaling_beta": 0.7,
    },
    "sliding_window": 60,
    "pad_token_id": 0,
}
