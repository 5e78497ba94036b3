"""GLM-4 9B of 2024 and GLM-Edge (GLM team 2024): Llama with neighbouring pairs of the first half of each head rotated,
and gate and up stored as one."""

from __future__ import annotations

from .base import CausalLM
from .config import ConfigKeys, DecoderConfig
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY


def glm_keys(keys: ConfigKeys) -> ConfigKeys:
    """With the defaults of this line of families."""
    return keys.filled(
        num_key_value_heads=2,
        head_dim=128,
        rms_norm_eps=1.5625e-7,
        partial_rotary_factor=0.5,
        max_position_embeddings=131072,
    )


def Config(keys: ConfigKeys) -> DecoderConfig:
    keys = glm_keys(keys)
    return DecoderConfig.read(
        keys, partial_rotary=True, family="glm", interleaved=True, qkv_bias=keys.flag("attention_bias", True)
    )


Model = CausalLM
WEIGHTS = QKV_AND_GATE_UP[:1]
TINY = {
    **LLAMA_TINY,
    "architectures": ["GlmForCausalLM"],
    "model_type": "glm",
    "head_dim": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1.5625e-7,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
}
