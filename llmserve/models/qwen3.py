"""Qwen 3, dense (Yang et al. 2025): Llama with an RMS norm on each query and key head before rotation."""

from __future__ import annotations

from .base import CausalLM
from .config import ConfigKeys, DecoderConfig
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY
from .qwen2 import qwen_layers


def Config(keys: ConfigKeys) -> DecoderConfig:
    bias = keys.flag("attention_bias", False)
    # 128 is the default of this family's config class, whatever hidden_size / heads would be.
    keys = keys.filled(head_dim=128)
    return DecoderConfig.read(keys, family="qwen3", qkv_bias=bias, o_bias=bias, qk_norm=True, layers=qwen_layers(keys))


Model = CausalLM
WEIGHTS = QKV_AND_GATE_UP
TINY = {
    **LLAMA_TINY,
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
