"""Mistral 7B (Jiang et al. 2023): Llama with a sliding window on every layer, where the config sets one."""

from __future__ import annotations

from .base import CausalLM
from .config import ConfigKeys, DecoderConfig, sliding_layers
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY


def Config(keys: ConfigKeys) -> DecoderConfig:
    slides = keys.has("sliding_window")
    layers = sliding_layers(keys, lambda layer: not slides, None if slides else 0)
    return DecoderConfig.read(keys, family="mistral", layers=layers)


Model = CausalLM
WEIGHTS = QKV_AND_GATE_UP
TINY = {
    **LLAMA_TINY,
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "num_key_value_heads": 1,
    "sliding_window": 24,
}
