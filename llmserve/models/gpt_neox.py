"""GPT-NeoX 20B and Pythia (Black et al. 2022; Biderman et al. 2023): attention and MLP side by side after a LayerNorm
each, biases everywhere, a quarter of each head rotated; queries, keys and values are stored head by head."""

from __future__ import annotations

import numpy as np

from ..weights.mapping import Fuse
from .base import CausalLM
from .config import ConfigKeys, DecoderConfig
from .layers import Attention, DecoderLayer, PageFormat, ParallelLayer, PlainMLP
from .parts import LayerNorm, Order


def Config(keys: ConfigKeys) -> DecoderConfig:
    # The reference is causal whatever is_decoder says.
    keys = ConfigKeys({**keys.raw, "is_decoder": True, "num_key_value_heads": None}, keys.source)
    keys = keys.renamed(rope_theta="rotary_emb_base", partial_rotary_factor="rotary_pct").filled(
        hidden_act="gelu", layer_norm_eps=1e-5, partial_rotary_factor=0.25
    )
    bias = keys.flag("attention_bias", True)
    return DecoderConfig.read(
        keys,
        partial_rotary=True,
        family="gpt_neox",
        norm_eps=keys.number("layer_norm_eps"),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=True,
        extra={"parallel": keys.flag("use_parallel_residual", True)},
    )


class GroupedAttention(Attention):
    """Its rows are stored by groups: the queries that share a key and a value, then these two."""

    def _qkv_order(self, config: DecoderConfig) -> Order | None:
        dim, group = config.head_dim, config.num_heads // config.num_kv_heads
        rows = np.arange(config.num_kv_heads * (group + 2) * dim).reshape(-1, group + 2, dim)
        turned = np.arange(dim) if self.head_order is None else self.head_order
        parts = (rows[:, :group, turned], rows[:, group, turned], rows[:, group + 1])
        return np.concatenate([part.reshape(-1) for part in parts])


class NeoxLayer(DecoderLayer):
    ATTENTION = GroupedAttention
    MLP = PlainMLP
    NORM = LayerNorm


class NeoxParallelLayer(ParallelLayer):
    ATTENTION = GroupedAttention
    MLP = PlainMLP
    NORM = LayerNorm
    NORMS = NeoxLayer.NORMS


class Model(CausalLM):
    def __init__(self, config: DecoderConfig, pages: PageFormat) -> None:
        self.LAYER = NeoxParallelLayer if config.extra["parallel"] else NeoxLayer
        super().__init__(config, pages)


_OURS, _THEIRS = "model.layers.{i}", "gpt_neox.layers.{i}"
_LAYER = {
    "self_attn.qkv_proj": "attention.query_key_value",
    "self_attn.o_proj": "attention.dense",
    "mlp.up_proj": "mlp.dense_h_to_4h",
    "mlp.down_proj": "mlp.dense_4h_to_h",
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
}
WEIGHTS = (
    Fuse("model.embed_tokens.weight", ("gpt_neox.embed_in.weight",)),
    Fuse("model.norm.{kind}", ("gpt_neox.final_layer_norm.{kind}",)),
    *(Fuse(f"{_OURS}.{ours}.{{kind}}", (f"{_THEIRS}.{theirs}.{{kind}}",)) for ours, theirs in _LAYER.items()),
)
TINY = {
    "architectures": ["GPTNeoXForCausalLM"],
    "model_type": "gpt_neox",
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 352,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": 512,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "rotary_pct": 0.25,
    "rotary_emb_base": 5000,
    "use_parallel_residual": True,
}
