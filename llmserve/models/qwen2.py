"""Qwen 2 and 2.5 (Yang et al. 2024): Llama with biases on q, k and v; upper layers may have a sliding window."""

from __future__ import annotations

from .base import CausalLM
from .config import ConfigKeys, DecoderConfig, LayerKind, sliding_layers
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY


def qwen_layers(keys: ConfigKeys) -> tuple[LayerKind, ...]:
    """Layers from max_window_layers on slide, if use_sliding_window says so."""
    slides = keys.flag("use_sliding_window", False) and keys.has("sliding_window")
    first = keys.integer("max_window_layers", 28, low=0)
    return sliding_layers(keys, lambda layer: not slides or layer < first, None if slides else 0)


def Config(keys: ConfigKeys) -> DecoderConfig:
    return DecoderConfig.read(keys, family="qwen2", qkv_bias=True, layers=qwen_layers(keys))


Model = CausalLM
WEIGHTS = QKV_AND_GATE_UP
TINY = {
    **LLAMA_TINY,
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "tie_word_embeddings": True,
    "use_sliding_window": True,
    "sliding_window": 40,
    "max_window_layers": 1,
}
