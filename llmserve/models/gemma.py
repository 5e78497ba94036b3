"""Gemma (Mesnard et al. 2024): Llama with norms of weight 1 + w, embeddings times √hidden, and a gate of GELU."""

from __future__ import annotations

from ..weights.mapping import Add
from .base import CausalLM
from .config import ConfigKeys, DecoderConfig
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY

NORMS_PLUS_ONE = Add("*norm.weight", 1.0)


def gemma_keys(keys: ConfigKeys) -> ConfigKeys:
    """With the defaults of this line of families."""
    keys.expect("use_bidirectional_attention", False)
    return keys.filled(head_dim=256, tie_word_embeddings=True)


def Config(keys: ConfigKeys) -> DecoderConfig:
    keys = gemma_keys(keys)
    # "gelu" in config.json means the approximation by tanh, which the models were trained with.
    keys.expect("hidden_act", "gelu", "gelu_pytorch_tanh")
    keys.expect("hidden_activation", "gelu_pytorch_tanh")
    bias = keys.flag("attention_bias", False)
    scale = keys.integer("hidden_size") ** 0.5
    return DecoderConfig.read(
        keys, family="gemma", activation="gelu_tanh", embedding_scale=scale, qkv_bias=bias, o_bias=bias
    )


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
