"""Gemma 2 (Riviere et al. 2024): Gemma with norms on both sides of each branch, a window on every other layer, and caps
on scores and logits."""

from __future__ import annotations

from .base import CausalLM
from .config import ConfigKeys, DecoderConfig, sliding_layers
from .gemma import NORMS_PLUS_ONE, gemma_keys, read_gemma
from .layers import DecoderLayer
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY


class SandwichLayer(DecoderLayer):
    """A norm before and after attention and MLP each."""

    NORMS = (
        *("input_layernorm", "post_attention_layernorm"),
        *("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    )


def cap(keys: ConfigKeys, name: str, default: float) -> float:
    """A softcap, which null switches off; `default` is for a key that is absent."""
    present = name in keys.raw
    return keys.number(name) if keys.has(name) else 0.0 if present else default


def Config(keys: ConfigKeys) -> DecoderConfig:
    keys = gemma_keys(keys)
    return read_gemma(
        keys,
        family="gemma2",
        attention_scale=keys.number("query_pre_attn_scalar", 256.0) ** -0.5,
        attention_softcap=cap(keys, "attn_logit_softcapping", 50.0),
        logit_softcap=cap(keys, "final_logit_softcapping", 30.0),
        layers=sliding_layers(keys.filled(sliding_window=4096), lambda layer: layer % 2 == 1),
    )


class Model(CausalLM):
    LAYER = SandwichLayer


WEIGHTS = (*QKV_AND_GATE_UP, NORMS_PLUS_ONE)
TINY = {
    **LLAMA_TINY,
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "head_dim": 64,
    "num_attention_heads": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 48,
    "sliding_window": 24,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
    "tie_word_embeddings": True,
}
