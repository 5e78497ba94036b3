"""InternLM 3 (Cai et al. 2025): Llama under other names of its keys."""

from __future__ import annotations

from ..errors import UnsupportedError
from .base import CausalLM
from .config import ConfigKeys, DecoderConfig
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY


def Config(keys: ConfigKeys) -> DecoderConfig:
    keys = keys.renamed(attention_bias="qkv_bias", mlp_bias="bias").filled(
        num_key_value_heads=2, head_dim=128, rms_norm_eps=1e-5, max_position_embeddings=32768
    )
    bias = keys.flag("attention_bias", False)
    if keys.flag("mlp_bias", False) != bias:
        raise UnsupportedError(f"{keys.source}: 'qkv_bias' and 'bias' must both be true or both be false.")
    return DecoderConfig.read(keys, family="internlm3", qkv_bias=bias, o_bias=bias, mlp_bias=bias)


Model = CausalLM
WEIGHTS = QKV_AND_GATE_UP
TINY = {
    **LLAMA_TINY,
    "architectures": ["InternLM3ForCausalLM"],
    "model_type": "internlm3",
    "head_dim": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "qkv_bias": True,
    "bias": True,
    "rope_scaling": {"rope_type": "dynamic", "factor": 6.0},
}
