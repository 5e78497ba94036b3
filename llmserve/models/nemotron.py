"""Nemotron 3 and 4, and Minitron (Parmar et al. 2024): LayerNorms of weight 1 + w, an MLP of squared ReLU without a
gate, the first half of each head rotated."""

from __future__ import annotations

from ..weights.mapping import Add
from .base import CausalLM
from .config import ConfigKeys, DecoderConfig
from .layers import DecoderLayer, PlainMLP
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY
from .parts import LayerNorm


def Config(keys: ConfigKeys) -> DecoderConfig:
    keys = keys.filled(hidden_act="relu2", norm_eps=1e-5, partial_rotary_factor=0.5, max_position_embeddings=4096)
    bias = keys.flag("attention_bias", False)
    return DecoderConfig.read(
        keys,
        partial_rotary=True,
        family="nemotron",
        norm_eps=keys.number("norm_eps"),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=keys.flag("mlp_bias", False),
    )


class NemotronLayer(DecoderLayer):
    MLP = PlainMLP
    NORM = LayerNorm


class Model(CausalLM):
    LAYER = NemotronLayer


WEIGHTS = (*QKV_AND_GATE_UP[:1], Add("*norm.weight", 1.0))
TINY = {
    **LLAMA_TINY,
    "architectures": ["NemotronForCausalLM"],
    "model_type": "nemotron",
    "head_dim": 48,
    "hidden_act": "relu2",
    "norm_eps": 1e-5,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
    "mlp_bias": True,
}
