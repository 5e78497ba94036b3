"""Gemma 3 (Kamath et al. 2025), its text model: Gemma 2 with norms on queries and keys in place of caps, five windows
to one full layer, and a rotary table for each."""

from __future__ import annotations

from .base import CausalLM
from .config import ConfigKeys, DecoderConfig, RopeConfig, head_dimension, sliding_layers
from .gemma import NORMS_PLUS_ONE, gemma_keys, read_gemma
from .gemma2 import SandwichLayer, cap
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY


def Config(keys: ConfigKeys) -> DecoderConfig:
    keys = gemma_keys(keys).filled(
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=262208,
        max_position_embeddings=131072,
        sliding_window=4096,
        sliding_window_pattern=6,
    )
    pattern, dim = keys.integer("sliding_window_pattern"), head_dimension(keys)
    full = RopeConfig.read(keys, dim, "full_attention", theta=1e6)
    local = RopeConfig(keys.number("rope_local_base_freq", 1e4))
    if isinstance(keys.table("rope_parameters").get("sliding_attention"), dict):
        local = RopeConfig.read(ConfigKeys({"rope_parameters": keys.raw["rope_parameters"]}), dim, "sliding_attention")
    return read_gemma(
        keys,
        family="gemma3_text",
        attention_scale=keys.number("query_pre_attn_scalar", 256.0) ** -0.5,
        logit_softcap=cap(keys, "final_logit_softcapping", 0.0),
        layers=sliding_layers(keys, lambda layer: (layer + 1) % pattern == 0, ropes=(0, 1)),
        rope=(full, local),
        qk_norm=True,
    )


class Model(CausalLM):
    LAYER = SandwichLayer


WEIGHTS = (*QKV_AND_GATE_UP, NORMS_PLUS_ONE)
TINY = {
    **LLAMA_TINY,
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "head_dim": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 48,
    "sliding_window": 24,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    "layer_types": ["sliding_attention", "full_attention"],
    "tie_word_embeddings": True,
}
