"""StarCoder 2 (Lozhkov et al. 2024): LayerNorms, biases everywhere, an MLP without a gate, a sliding window."""

from __future__ import annotations

from ..weights.mapping import Fuse
from .base import CausalLM
from .config import ConfigKeys, DecoderConfig, sliding_layers
from .layers import DecoderLayer, PlainMLP
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY
from .parts import LayerNorm


def Config(keys: ConfigKeys) -> DecoderConfig:
    keys = keys.filled(
        num_key_value_heads=2,
        hidden_act="gelu_pytorch_tanh",
        norm_epsilon=1e-5,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    keys.expect("norm_type", "layer_norm")
    keys.expect("mlp_type", "default")
    bias, slides = keys.flag("use_bias", True), keys.has("sliding_window")
    return DecoderConfig.read(
        keys,
        family="starcoder2",
        norm_eps=keys.number("norm_epsilon"),
        layers=sliding_layers(keys, lambda layer: not slides, None if slides else 0),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bias,
    )


class Starcoder2Layer(DecoderLayer):
    MLP = PlainMLP
    NORM = LayerNorm


class Model(CausalLM):
    LAYER = Starcoder2Layer


WEIGHTS = (
    *QKV_AND_GATE_UP[:1],
    Fuse("model.layers.{i}.mlp.up_proj.{kind}", ("model.layers.{i}.mlp.c_fc.{kind}",)),
    Fuse("model.layers.{i}.mlp.down_proj.{kind}", ("model.layers.{i}.mlp.c_proj.{kind}",)),
)
TINY = {
    **LLAMA_TINY,
    "architectures": ["Starcoder2ForCausalLM"],
    "model_type": "starcoder2",
    "hidden_act": "gelu_pytorch_tanh",
    "norm_epsilon": 1e-5,
    "use_bias": True,
    "sliding_window": 24,
    "tie_word_embeddings": True,
}
