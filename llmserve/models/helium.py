"""Helium 1 (Kyutai 2025): Llama with neighbouring pairs rotated."""

from __future__ import annotations

from ..errors import UnsupportedError
from .base import CausalLM
from .config import ConfigKeys, DecoderConfig
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY


def Config(keys: ConfigKeys) -> DecoderConfig:
    keys = keys.filled(
        num_key_value_heads=20, head_dim=128, rms_norm_eps=1e-8, rope_theta=1e5, max_position_embeddings=4096
    )
    config = DecoderConfig.read(
        keys,
        family="helium",
        interleaved=True,
        qkv_bias=keys.flag("attention_bias", False),
        mlp_bias=keys.flag("mlp_bias", False),
    )
    if config.num_heads * config.head_dim != config.hidden_size:
        raise UnsupportedError(f"{keys.source}: num_attention_heads times head_dim must be hidden_size.")
    return config


Model = CausalLM
WEIGHTS = QKV_AND_GATE_UP
TINY = {
    **LLAMA_TINY,
    "architectures": ["HeliumForCausalLM"],
    "model_type": "helium",
    "head_dim": 32,
    "rms_norm_eps": 1e-8,
    "attention_bias": True,
    "mlp_bias": True,
}
