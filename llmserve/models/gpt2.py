"""GPT-2 (Radford et al. 2019): learned positions in place of rotations, LayerNorms, biases everywhere, an MLP without a
gate, and weights that are stored [in, out]."""

from __future__ import annotations

from tvm.relax.frontend.nn import Tensor

from ..weights.mapping import Fuse, Transpose
from .base import CausalLM
from .config import ConfigKeys, DecoderConfig
from .layers import Decoder, DecoderLayer, PageFormat, PlainMLP
from .parts import LayerNorm, Table, picked


def Config(keys: ConfigKeys) -> DecoderConfig:
    for name in ("add_cross_attention", "scale_attn_by_inverse_layer_idx"):
        keys.expect(name, False)
    keys = keys.renamed(
        hidden_size="n_embd",
        num_hidden_layers="n_layer",
        num_attention_heads="n_head",
        max_position_embeddings="n_positions",
        intermediate_size="n_inner",
    ).filled(
        activation_function="gelu_new", layer_norm_epsilon=1e-5, max_position_embeddings=1024, tie_word_embeddings=True
    )
    keys = keys.filled(intermediate_size=4 * keys.integer("hidden_size"))
    positions = keys.integer("max_position_embeddings")
    return DecoderConfig.read(
        keys,
        family="gpt2",
        rope=(),
        activation=keys.activation("activation_function"),
        norm_eps=keys.number("layer_norm_epsilon"),
        attention_scale=0.0 if keys.flag("scale_attn_weights", True) else 1.0,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        extra={"positions": positions},
    )


class Gpt2Layer(DecoderLayer):
    MLP = PlainMLP
    NORM = LayerNorm


class Gpt2Decoder(Decoder):
    def __init__(self, config: DecoderConfig, pages: PageFormat, layer: type[DecoderLayer]) -> None:
        super().__init__(config, pages, layer)
        self.positions = Table(config.extra["positions"], config.hidden_size)

    def begin(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + picked(self.positions.weight, positions).astype(x.dtype)


class Model(CausalLM):
    LAYER = Gpt2Layer
    DECODER = Gpt2Decoder


_OURS, _THEIRS = "model.layers.{i}", "transformer.h.{i}"
_MATRICES = {
    "self_attn.qkv_proj": "attn.c_attn",
    "self_attn.o_proj": "attn.c_proj",
    "mlp.up_proj": "mlp.c_fc",
    "mlp.down_proj": "mlp.c_proj",
}
_NORMS = {"input_layernorm": "ln_1", "post_attention_layernorm": "ln_2"}
WEIGHTS = (
    Fuse("model.embed_tokens.weight", ("transformer.wte.weight",)),
    Fuse("model.positions.weight", ("transformer.wpe.weight",)),
    Fuse("model.norm.{kind}", ("transformer.ln_f.{kind}",)),
    *(
        Fuse(f"{_OURS}.{ours}.{{kind}}", (f"{_THEIRS}.{theirs}.{{kind}}",))
        for ours, theirs in {**_MATRICES, **_NORMS}.items()
    ),
    *(Transpose(f"model.layers.*.{name}.weight") for name in _MATRICES),
)
TINY = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": 512,
    "n_embd": 256,
    "n_layer": 2,
    "n_head": 8,
    "n_positions": 256,
    "n_ctx": 256,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
}
