"""Command R7B and Command A (Cohere 2024): attention and MLP side by side after one norm, three windows to one full
layer, and rotation, by neighbouring pairs, of layers with a window only."""

from __future__ import annotations

from .base import CausalLM
from .config import ConfigKeys, DecoderConfig, sliding_layers
from .layers import ParallelLayer
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY
from .parts import BiaslessLayerNorm


class Cohere2Layer(ParallelLayer):
    NORM = BiaslessLayerNorm


def Config(keys: ConfigKeys) -> DecoderConfig:
    keys = keys.filled(tie_word_embeddings=True, max_position_embeddings=8192, sliding_window_pattern=4)
    keys = keys.assumed(sliding_window=4096)
    # The reference computes with this head_dim whatever the config says.
    keys.expect("head_dim", keys.integer("hidden_size") // keys.integer("num_attention_heads"))
    keys.expect("use_qk_norm", False)
    bias, pattern = keys.flag("attention_bias", False), keys.integer("sliding_window_pattern")
    return DecoderConfig.read(
        keys,
        family="cohere2",
        layers=sliding_layers(keys, lambda layer: (layer + 1) % pattern == 0, ropes=(None, 0)),
        norm_eps=keys.number("layer_norm_eps", 1e-5),
        logit_scale=keys.number("logit_scale", 0.0625),
        interleaved=True,
        qkv_bias=bias,
        o_bias=bias,
    )


class Model(CausalLM):
    LAYER = Cohere2Layer


WEIGHTS = QKV_AND_GATE_UP
TINY = {
    **LLAMA_TINY,
    "architectures": ["Cohere2ForCausalLM"],
    "model_type": "cohere2",
    "intermediate_size": 320,
    "num_attention_heads": 4,
    "attention_bias": True,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 24,
    "logit_scale": 0.25,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
}
