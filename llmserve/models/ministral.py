"""Ministral 8B (Mistral AI 2024): Mistral with a window on some layers."""

from __future__ import annotations

from .base import CausalLM
from .config import ConfigKeys, DecoderConfig, sliding_layers
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY


def Config(keys: ConfigKeys) -> DecoderConfig:
    keys = keys.assumed(num_key_value_heads=8, sliding_window=4096).filled(max_position_embeddings=131072)
    slides = keys.has("sliding_window")
    return DecoderConfig.read(keys, family="ministral", layers=sliding_layers(keys, lambda layer: not slides))


Model = CausalLM
WEIGHTS = QKV_AND_GATE_UP
TINY = {
    **LLAMA_TINY,
    "architectures": ["MinistralForCausalLM"],
    "model_type": "ministral",
    "head_dim": 64,
    "layer_types": ["full_attention", "sliding_attention"],
    "sliding_window": 24,
    "rope_theta": 1000.0,
}
