"""Gemma (Mesnard et al. 2024): Llama with norms of weight 1 + w, embeddings times √hidden, and a gate of GELU."""

from __future__ import annotations

from typing import Any

from ..weights.mapping import Add
from .base import CausalLM
from .config import ConfigKeys, DecoderConfig
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY

NORMS_PLUS_ONE = Add("*norm.weight", 1.0)


def gemma_keys(keys: ConfigKeys) -> ConfigKeys:
    """With the defaults of this line of families."""
    return keys.filled(head_dim=256, tie_word_embeddings=True)


def read_gemma(keys: ConfigKeys, **family: Any) -> DecoderConfig:
    """The keys that this line of families shares; `family` sets what a family fixes or reads itself."""
    keys.expect("use_bidirectional_attention", False)
    keys.expect("hidden_activation", "gelu_pytorch_tanh")
    bias, scale = keys.flag("attention_bias", False), keys.integer("hidden_size") ** 0.5
    shared = {"activation": "gelu_tanh", "embedding_scale": scale, "qkv_bias": bias, "o_bias": bias}
    return DecoderConfig.read(keys, **shared, **family)


def Config(keys: ConfigKeys) -> DecoderConfig:
    # "gelu" in config.json means the approximation by tanh, which the models were trained with.
    keys.expect("hidden_act", "gelu", "gelu_pytorch_tanh")
    return read_gemma(gemma_keys(keys), family="gemma")


Model = CausalLM
WEIGHTS = (*QKV_AND_GATE_UP, NORMS_PLUS_ONE)
TINY = {
    **LLAMA_TINY,
    "architectures": ["GemmaForCausalLM"],
    "model_type": "gemma",
    "head_dim": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "hidden_act": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}
