"""Arcee's AFM (Arcee AI 2025): Llama with an MLP of squared ReLU without a gate."""

from __future__ import annotations

from .base import CausalLM
from .config import ConfigKeys, DecoderConfig
from .layers import DecoderLayer, PlainMLP
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY


def Config(keys: ConfigKeys) -> DecoderConfig:
    keys = keys.filled(hidden_act="relu2", rms_norm_eps=1e-5, max_position_embeddings=4096)
    bias = keys.flag("attention_bias", False)
    return DecoderConfig.read(keys, family="arcee", qkv_bias=bias, o_bias=bias, mlp_bias=keys.flag("mlp_bias", False))


class ArceeLayer(DecoderLayer):
    MLP = PlainMLP


class Model(CausalLM):
    LAYER = ArceeLayer


WEIGHTS = QKV_AND_GATE_UP[:1]
TINY = {
    **LLAMA_TINY,
    "architectures": ["ArceeForCausalLM"],
    "model_type": "arcee",
    "hidden_act": "relu2",
    "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64},
}
