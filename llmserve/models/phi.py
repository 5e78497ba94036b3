"""Phi 1, 1.5 and 2 (Gunasekar et al. 2023; Li et al. 2023): attention and MLP side by side after one LayerNorm, biases
everywhere, the first half of each head rotated."""

from __future__ import annotations

from tvm.relax.frontend.nn import Tensor

from ..kernels.base import Batch
from ..weights.mapping import Fuse
from .base import CausalLM
from .config import ConfigKeys, DecoderConfig, LayerKind
from .layers import Attention, PageFormat, ParallelLayer, PlainMLP
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY
from .parts import HeadNorm, LayerNorm


def Config(keys: ConfigKeys) -> DecoderConfig:
    keys.expect("tie_word_embeddings", False)  # the head has a bias of its own
    keys = keys.filled(hidden_act="gelu_new", layer_norm_eps=1e-5, partial_rotary_factor=0.5)
    return DecoderConfig.read(
        keys,
        partial_rotary=True,
        family="phi",
        norm_eps=keys.number("layer_norm_eps"),
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        head_bias=True,
        extra={"head_norms": keys.flag("qk_layernorm", False)},
    )


class PhiAttention(Attention):
    """Queries and keys may be normed, all heads by the same numbers."""

    def __init__(self, config: DecoderConfig, pages: PageFormat, kind: LayerKind) -> None:
        super().__init__(config, pages, kind)
        self.head_norms = bool(config.extra["head_norms"])
        if self.head_norms:
            dim, eps = config.head_dim, config.norm_eps
            self.q_layernorm = HeadNorm(dim, eps, (dim,), self.head_order, bias=True)
            self.k_layernorm = HeadNorm(dim, eps, (dim,), self.head_order, bias=True)

    def prepare(self, qkv: Tensor, batch: Batch) -> Tensor:
        return self.with_norms(qkv, self.q_layernorm, self.k_layernorm) if self.head_norms else qkv


class PhiLayer(ParallelLayer):
    ATTENTION = PhiAttention
    MLP = PlainMLP
    NORM = LayerNorm


class Model(CausalLM):
    LAYER = PhiLayer


_LAYER = "model.layers.{i}"
WEIGHTS = (
    *QKV_AND_GATE_UP[:1],
    Fuse(f"{_LAYER}.self_attn.o_proj.{{kind}}", (f"{_LAYER}.self_attn.dense.{{kind}}",)),
    Fuse(f"{_LAYER}.mlp.up_proj.{{kind}}", (f"{_LAYER}.mlp.fc1.{{kind}}",)),
    Fuse(f"{_LAYER}.mlp.down_proj.{{kind}}", (f"{_LAYER}.mlp.fc2.{{kind}}",)),
    Fuse("model.norm.{kind}", ("model.final_layernorm.{kind}",)),
)
TINY = {
    **LLAMA_TINY,
    "architectures": ["PhiForCausalLM"],
    "model_type": "phi",
    "num_key_value_heads": 4,
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-5,
    "partial_rotary_factor": 0.5,
    "qk_layernorm": True,
}
