"""Falcon 7B, 40B and 180B, and Falcon 2 (Almazrouei et al. 2023): LayerNorms, an MLP without a gate, mostly beside the
attention; queries, keys and values are stored by groups."""

from __future__ import annotations

from ..weights.mapping import Fuse
from .base import CausalLM
from .config import ConfigKeys, DecoderConfig
from .gpt_neox import GroupedAttention
from .layers import DecoderLayer, PageFormat, ParallelLayer, PlainMLP
from .parts import LayerNorm


def Config(keys: ConfigKeys) -> DecoderConfig:
    keys.expect("alibi", False)
    keys.expect("apply_residual_connection_post_layernorm", False)
    keys = keys.renamed(hidden_size="n_embed", intermediate_size="ffn_hidden_size")
    heads, hidden = keys.integer("num_attention_heads"), keys.integer("hidden_size")
    new, parallel = keys.flag("new_decoder_architecture", False), keys.flag("parallel_attn", True)
    if new:
        keys.expect("parallel_attn", True)
        keys.expect("num_ln_in_parallel_attn", 1, 2)
        kv_heads, norms = keys.integer("num_kv_heads", heads), keys.integer("num_ln_in_parallel_attn", 2)
    else:
        keys.expect("num_ln_in_parallel_attn", 1)
        kv_heads, norms = 1 if keys.flag("multi_query", True) else heads, 1
    keys = keys.filled(layer_norm_epsilon=1e-5, intermediate_size=4 * hidden, tie_word_embeddings=True)
    bias = keys.flag("bias", False)
    return DecoderConfig.read(
        ConfigKeys({**keys.raw, "num_key_value_heads": kv_heads, "head_dim": None}, keys.source),
        family="falcon",
        activation=keys.activation("activation", "gelu"),
        norm_eps=keys.number("layer_norm_epsilon"),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bias,
        extra={"norms": norms if parallel else 0},
    )


class FalconLayer(DecoderLayer):
    ATTENTION = GroupedAttention
    MLP = PlainMLP
    NORM = LayerNorm


class FalconParallelLayer(ParallelLayer):
    ATTENTION = GroupedAttention
    MLP = PlainMLP
    NORM = LayerNorm


class FalconTwoNormsLayer(FalconParallelLayer):
    NORMS = ("attention_layernorm", None, "mlp_layernorm", None)


class Model(CausalLM):
    def __init__(self, config: DecoderConfig, pages: PageFormat) -> None:
        self.LAYER = (FalconLayer, FalconParallelLayer, FalconTwoNormsLayer)[config.extra["norms"]]
        super().__init__(config, pages)


_OURS, _THEIRS = "model.layers.{i}", "transformer.h.{i}"
_LAYER = {
    "self_attn.qkv_proj": "self_attention.query_key_value",
    "self_attn.o_proj": "self_attention.dense",
    "mlp.up_proj": "mlp.dense_h_to_4h",
    "mlp.down_proj": "mlp.dense_4h_to_h",
    "attention_layernorm": "ln_attn",
    "mlp_layernorm": "ln_mlp",
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
}
WEIGHTS = (
    Fuse("model.embed_tokens.weight", ("transformer.word_embeddings.weight",)),
    Fuse("model.norm.{kind}", ("transformer.ln_f.{kind}",)),
    *(Fuse(f"{_OURS}.{ours}.{{kind}}", (f"{_THEIRS}.{theirs}.{{kind}}",)) for ours, theirs in _LAYER.items()),
)
TINY = {
    "architectures": ["FalconForCausalLM"],
    "model_type": "falcon",
    "vocab_size": 512,
    "hidden_size": 256,
    "ffn_hidden_size": 352,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_kv_heads": 2,
    "max_position_embeddings": 512,
    "activation": "gelu",
    "layer_norm_epsilon": 1e-5,
    "new_decoder_architecture": True,
    "parallel_attn": True,
    "alibi": False,
    "bias": False,
    "tie_word_embeddings": False,
}
