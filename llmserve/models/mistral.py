"""Mistral 7B (Jiang et al. 2023) to Small 3: Llama with a window on every layer, unless the config says null."""

from __future__ import annotations

from .base import CausalLM
from .config import ConfigKeys, DecoderConfig, equal_layers
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY


def Config(keys: ConfigKeys) -> DecoderConfig:
    keys = keys.assumed(num_key_value_heads=8, sliding_window=4096).filled(max_position_embeddings=131072)
    return DecoderConfig.read(keys, family="mistral", layers=equal_layers(keys))


Model = CausalLM
WEIGHTS = QKV_AND_GATE_UP
TINY = {
    **LLAMA_TINY,
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "num_key_value_heads": 1,
    "sliding_window": 24,
}
