"""Mistral 7B (Jiang et al. 2023): Llama with a sliding window on every layer, where the config sets one."""

from __future__ import annotations

from .base import CausalLM
from .config import DecoderConfig, Keys, layer_windows
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY


def Config(keys: Keys) -> DecoderConfig:
    window = keys.integer("sliding_window") if keys.has("sliding_window") else 0
    return DecoderConfig.read(keys, family="mistral", window=layer_windows(keys, window, lambda layer: True))


Model = CausalLM
WEIGHTS = QKV_AND_GATE_UP
TINY = {
    **LLAMA_TINY,
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "num_key_value_heads": 1,
    "sliding_window": 24,
}
