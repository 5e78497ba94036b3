"""GLM-4-0414 (GLM team 2025): Llama with norms on both sides of each branch, half of each head turning, by neighbouring
pairs, and gate and up fused in the checkpoint already."""

from __future__ import annotations

from .base import CausalLM
from .config import ConfigKeys, DecoderConfig, RopeConfig, head_dimension
from .layers import DecoderLayer
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY


class Glm4Layer(DecoderLayer):
    """The norm that others call post_attention_layernorm is here, too, the one before the MLP."""

    NORMS = (
        *("input_layernorm", "post_self_attn_layernorm"),
        *("post_attention_layernorm", "post_mlp_layernorm"),
    )


def Config(keys: ConfigKeys) -> DecoderConfig:
    keys = keys.filled(head_dim=128, num_key_value_heads=2, rms_norm_eps=1.5625e-7, max_position_embeddings=131072)
    return DecoderConfig.read(
        keys,
        partial_rotary=True,
        family="glm4",
        rope=(RopeConfig.read(keys, head_dimension(keys), partial=0.5),),
        interleaved=True,
        qkv_bias=keys.flag("attention_bias", True),
    )


class Model(CausalLM):
    LAYER = Glm4Layer


WEIGHTS = QKV_AND_GATE_UP[:1]
TINY = {
    **LLAMA_TINY,
    "architectures": ["Glm4ForCausalLM"],
    "model_type": "glm4",
    "head_dim": 64,
    "num_attention_heads": 4,
    "attention_bias": True,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1.5625e-7,
    "pad_token_id": 0,
}
