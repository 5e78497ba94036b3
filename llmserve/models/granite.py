"""Granite 3 (IBM 2024): Llama with factors on embeddings, on scores, on each branch and on logits."""

from __future__ import annotations

from .base import CausalLM
from .config import ConfigKeys, DecoderConfig
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY


def Config(keys: ConfigKeys) -> DecoderConfig:
    bias = keys.flag("attention_bias", False)
    return DecoderConfig.read(
        keys,
        family="granite",
        embedding_scale=keys.number("embedding_multiplier", 1.0),
        attention_scale=keys.number("attention_multiplier", 1.0),
        residual_scale=keys.number("residual_multiplier", 1.0),
        logit_scale=1.0 / keys.number("logits_scaling", 1.0),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=keys.flag("mlp_bias", False),
    )


Model = CausalLM
WEIGHTS = QKV_AND_GATE_UP
TINY = {
    **LLAMA_TINY,
    "architectures": ["GraniteForCausalLM"],
    "model_type": "granite",
    "attention_bias": True,
    "mlp_bias": True,
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.25,
    "residual_multiplier": 0.6,
    "logits_scaling": 3.0,
    "tie_word_embeddings": False,
}
