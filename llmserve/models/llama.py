"""Llama 1 to 3.x (Touvron et al. 2023; Grattafiori et al. 2024), and what is built exactly like it."""

from __future__ import annotations

from ..weights.mapping import Fuse
from .base import CausalLM
from .config import ConfigKeys, DecoderConfig

_LAYER = "model.layers.{i}"
QKV_AND_GATE_UP = (
    Fuse(
        f"{_LAYER}.self_attn.qkv_proj.{{kind}}",
        tuple(f"{_LAYER}.self_attn.{name}_proj.{{kind}}" for name in ("q", "k", "v")),
    ),
    Fuse(f"{_LAYER}.mlp.gate_up_proj.{{kind}}", tuple(f"{_LAYER}.mlp.{name}_proj.{{kind}}" for name in ("gate", "up"))),
)


def Config(keys: ConfigKeys) -> DecoderConfig:
    bias = keys.flag("attention_bias", False)
    return DecoderConfig.read(keys, family="llama", qkv_bias=bias, o_bias=bias, mlp_bias=keys.flag("mlp_bias", False))


Model = CausalLM
WEIGHTS = QKV_AND_GATE_UP
TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 352,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
