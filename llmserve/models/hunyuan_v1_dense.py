"""Hunyuan 0.5B to 7B (Tencent 2025): Llama with RMS norms on each query and key head after their rotation."""

from __future__ import annotations

from dataclasses import replace

from tvm.relax.frontend.nn import Tensor, op

from ..kernels.base import Batch
from .base import CausalLM
from .config import ConfigKeys, DecoderConfig, LayerKind
from .layers import Attention, DecoderLayer, PageFormat
from .llama import QKV_AND_GATE_UP
from .llama import TINY as LLAMA_TINY
from .parts import Table, picked


def Config(keys: ConfigKeys) -> DecoderConfig:
    # Keys of the line's first code, which the models were released with.
    for name, value in (("use_qk_norm", True), ("use_cla", False), ("use_rotary_pos_emb", True), ("mlp_bias", False)):
        keys.expect(name, value)
    keys = keys.filled(rms_norm_eps=1e-5)
    bias = keys.flag("attention_bias", False)
    return DecoderConfig.read(keys, family="hunyuan_v1_dense", qkv_bias=bias, o_bias=bias)


class NormedAfterRotation(Attention):
    """Queries and keys are rotated and normed by plain operators, as kernels norm first."""

    def __init__(self, config: DecoderConfig, pages: PageFormat, kind: LayerKind) -> None:
        super().__init__(config, pages, kind)
        self.shape = replace(self.shape, table=None)
        self.query_layernorm, self.key_layernorm = Table(config.head_dim), Table(config.head_dim)

    def prepare(self, qkv: Tensor, batch: Batch) -> Tensor:
        q, k, v = self.split(qkv)
        cos, sin = (op.unsqueeze(picked(table, batch.positions), 1) for table in (batch.cos, batch.sin))
        q, k = self._turned(q, cos, sin, self.query_layernorm), self._turned(k, cos, sin, self.key_layernorm)
        return op.concat([q, k, v], 1)

    def _turned(self, x: Tensor, cos: Tensor, sin: Tensor, norm: Table) -> Tensor:
        dim = self.shape.head_dim
        heads = op.reshape(x.astype("float32"), (x.shape[0], -1, dim))
        # A rotation leaves the mean square as it is.
        root = op.sqrt(op.sum(op.square(heads), axis=-1, keepdims=True) * (1 / dim) + self.eps)
        low, high = op.split(heads / root, 2, axis=-1)
        turned = op.concat([low * cos - high * sin, high * cos + low * sin], 2)
        return op.reshape(turned * norm.weight, x.shape).astype(x.dtype)


class HunyuanLayer(DecoderLayer):
    ATTENTION = NormedAfterRotation


class Model(CausalLM):
    LAYER = HunyuanLayer


WEIGHTS = QKV_AND_GATE_UP
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
