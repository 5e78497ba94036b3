"""Hunyuan 0.5B to 7B (Tencent 2025): Llama with RMS norms on each query and key head after their rotation."""

from __future__ import annotations

from tvm.relax.frontend.nn import Tensor, op

from ..kernels.base import Batch, active
from ..weights.mapping import Fuse
from .base import CausalLM
from .config import ConfigKeys, DecoderConfig
from .layers import Attention, DecoderLayer
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY


def Config(keys: ConfigKeys) -> DecoderConfig:
    # Keys of the line's first code, which the models were released with.
    for name, value in (("use_qk_norm", True), ("use_cla", False), ("use_rotary_pos_emb", True), ("mlp_bias", False)):
        keys.expect(name, value)
    keys = keys.filled(rms_norm_eps=1e-5)
    bias = keys.flag("attention_bias", False)
    return DecoderConfig.read(keys, family="hunyuan_v1_dense", qk_norm=True, qkv_bias=bias, o_bias=bias)


class NormedAfterRotation(Attention):
    """A rotation leaves a head's root mean square as it is, so the kernel that norms first serves here too, without the
    weights. What a product of query and key takes of both weights, the query takes."""

    def attend(self, qkv: Tensor, batch: Batch, pages: Tensor) -> Tensor:
        ones = op.ones((self.shape.head_dim,), "float32")
        q, pages = active().rope_append(qkv, (ones, ones), self.eps, batch, pages, self.shape)
        return active().attention(self.temper(q, batch), batch, pages, self.shape, self.scale)

    def temper(self, q: Tensor, batch: Batch) -> Tensor:
        heads = op.reshape(q.astype("float32"), (q.shape[0], self.shape.heads, self.shape.head_dim))
        return op.reshape(heads * (self.q_norm.weight * self.k_norm.weight), q.shape).astype(q.dtype)


class HunyuanLayer(DecoderLayer):
    ATTENTION = NormedAfterRotation


class Model(CausalLM):
    LAYER = HunyuanLayer


_ATTENTION = "model.layers.{i}.self_attn"
WEIGHTS = (
    *QKV_AND_GATE_UP,
    Fuse(f"{_ATTENTION}.q_norm.weight", (f"{_ATTENTION}.query_layernorm.weight",)),
    Fuse(f"{_ATTENTION}.k_norm.weight", (f"{_ATTENTION}.key_layernorm.weight",)),
)
TINY = {
    **LLAMA_TINY,
    "architectures": ["HunYuanDenseV1ForCausalLM"],
    "model_type": "hunyuan_v1_dense",
    "head_dim": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "rope_scaling": {"rope_type": "dynamic", "alpha": 50.0, "factor": 1.0},
}
