"""ERNIE 4.5, dense (Baidu 2025): Llama with rotation by neighbouring pairs, and one key for the biases of all
matrices."""

from __future__ import annotations

from .base import CausalLM
from .config import ConfigKeys, DecoderConfig, RopeConfig, head_dimension
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY


def Config(keys: ConfigKeys) -> DecoderConfig:
    keys = keys.assumed(head_dim=128, num_key_value_heads=2).filled(
        rms_norm_eps=1e-5, tie_word_embeddings=True, max_position_embeddings=131072
    )
    bias = keys.flag("use_bias", False)
    return DecoderConfig.read(
        keys,
        family="ernie4_5",
        rope=(RopeConfig.read(keys, head_dimension(keys), theta=500000.0),),
        interleaved=True,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bias,
    )


Model = CausalLM
WEIGHTS = QKV_AND_GATE_UP
TINY = {
    **LLAMA_TINY,
    "architectures": ["Ernie4_5ForCausalLM"],
    "model_type": "ernie4_5",
    "head_dim": 64,
    "num_attention_heads": 4,
    "use_bias": True,
    "tie_word_embeddings": False,
}
