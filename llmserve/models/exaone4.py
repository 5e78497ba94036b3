"""EXAONE 4 (LG AI Research 2025): norms in OLMo 2's places, norms of single heads, and where some layers have windows,
no rotation of the others."""

from __future__ import annotations

from .base import CausalLM
from .config import ConfigKeys, DecoderConfig, sliding_layers
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY
from .olmo2 import PostNormLayer


def Config(keys: ConfigKeys) -> DecoderConfig:
    keys = keys.assumed(sliding_window=4096).filled(rms_norm_eps=1e-5, num_key_value_heads=32)
    slides = keys.has("sliding_window")

    def full(layer: int) -> bool:
        return not slides or (layer + 1) % keys.integer("sliding_window_pattern", 4) == 0

    layers = sliding_layers(keys, full, ropes=(None if slides else 0, 0))
    return DecoderConfig.read(keys, family="exaone4", layers=layers, qk_norm=True)


class Model(CausalLM):
    LAYER = PostNormLayer


WEIGHTS = QKV_AND_GATE_UP
TINY = {
    **LLAMA_TINY,
    "architectures": ["Exaone4ForCausalLM"],
    "model_type": "exaone4",
    "head_dim": 64,
    "num_attention_heads": 4,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 24,
}
