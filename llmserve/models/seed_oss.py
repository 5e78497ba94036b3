"""Seed-OSS (ByteDance Seed 2025): Llama with biases on q, k and v, of which o's is a key of its own."""

from __future__ import annotations

from .base import CausalLM
from .config import ConfigKeys, DecoderConfig
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY


def Config(keys: ConfigKeys) -> DecoderConfig:
    keys = keys.assumed(head_dim=128, num_key_value_heads=8).filled(max_position_embeddings=524288)
    return DecoderConfig.read(
        keys,
        family="seed_oss",
        qkv_bias=keys.flag("attention_bias", True),
        o_bias=keys.flag("attention_out_bias", False),
        mlp_bias=keys.flag("mlp_bias", False),
    )


Model = CausalLM
WEIGHTS = QKV_AND_GATE_UP
TINY = {
    **LLAMA_TINY,
    "architectures": ["SeedOssForCausalLM"],
    "model_type": "seed_oss",
    "head_dim": 64,
    "num_attention_heads": 4,
    "attention_bias": True,
    "attention_out_bias": True,
    "mlp_bias": True,
    "rope_theta": 1000.0,
}
