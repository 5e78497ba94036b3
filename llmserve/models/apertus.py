"""Apertus (Swiss AI 2025): norms on each query and key head, and an MLP of xIELU without a gate."""

from __future__ import annotations

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op

from .base import CausalLM
from .config import ConfigKeys, DecoderConfig
from .layers import DecoderLayer, PlainMLP
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY

_ROPE = {  # of configs without any
    "rope_type": "llama3",
    "rope_theta": 12000000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}


def Config(keys: ConfigKeys) -> DecoderConfig:
    for name, value in (("hidden_act", "xielu"), ("qk_norm", True), ("post_norm", False), ("mlp_bias", False)):
        keys.expect(name, value)
    if not keys.table("rope_scaling"):
        keys = keys.filled(rope_parameters=_ROPE)
    keys = keys.filled(rope_theta=12000000.0, rms_norm_eps=1e-5, max_position_embeddings=65536)
    bias = keys.flag("attention_bias", False)
    return DecoderConfig.read(keys, family="apertus", activation="xielu", qk_norm=True, qkv_bias=bias, o_bias=bias)


class XIELU(nn.Module):
    """Huang & Schlag 2024: a parabola with slope `beta` at 0 for positive x, an exponential below, both curved as
    trained. It is computed in float32, as squares may exceed float16."""

    def __init__(self) -> None:
        self.alpha_p = nn.Parameter((1,), "float32")
        self.alpha_n = nn.Parameter((1,), "float32")
        self.beta = nn.Parameter((), "float32")
        self.eps = nn.Parameter((), "float32")

    def forward(self, x: Tensor) -> Tensor:
        wide = x.astype("float32")
        above = op.softplus(self.alpha_p) * op.square(wide)
        below = (self.beta + op.softplus(self.alpha_n)) * (op.exp(op.minimum(wide, self.eps)) - 1.0 - wide)
        curved = op.where(op.greater(wide, Tensor.from_scalar(0.0, "float32")), above, below)
        return (curved + self.beta * wide).astype(x.dtype)


class ApertusMLP(PlainMLP):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.act_fn = XIELU()

    def activate(self, x: Tensor) -> Tensor:
        return self.act_fn(x)


class ApertusLayer(DecoderLayer):
    MLP = ApertusMLP
    NORMS = ("attention_layernorm", None, "feedforward_layernorm", None)


class Model(CausalLM):
    LAYER = ApertusLayer


WEIGHTS = QKV_AND_GATE_UP[:1]
TINY = {
    **LLAMA_TINY,
    "architectures": ["ApertusForCausalLM"],
    "model_type": "apertus",
    "head_dim": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "xielu",
    "rope_theta": 100000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
}
