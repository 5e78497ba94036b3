"""Decoders of Llama's shape in numpy, float64 but where the engine rounds on purpose: the reference for all schemes.

Other shapes have transformers as their reference, in float32 and with the same rounding (tests/reference.py).

Reads the same converted weights as the engine. Nothing of the product's forward pass is used.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llmserve.kernels.cpu.rounding import shared_groups
from llmserve.models import rope
from llmserve.models.config import DecoderConfig
from llmserve.quant.group import GroupFormat, dequantize
from llmserve.quant.scheme import Scheme
from llmserve.weights.load import load_params


def quantize_activations(
    x: npt.NDArray[np.float32], fmt: GroupFormat
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """The kernels' activation rounding in numpy: x [M, K] → (int8 [M, groups, group size], scales float32 [M, groups]).

    Symmetric, scale = max|x| / 127 over `shared_groups` groups, which all have that scale, rounding half to even; K is
    padded with zeros to whole groups.
    """
    m, groups, shared = len(x), fmt.groups(x.shape[1]), shared_groups(fmt)
    padded = np.zeros((m, -(-groups // shared), shared * fmt.group_size), np.float32)
    padded.reshape(m, -1)[:, : x.shape[1]] = x
    largest = np.abs(padded).max(-1)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    values = np.rint(padded * inverse[:, :, None]).astype(np.int8).reshape(m, -1, fmt.group_size)
    return values[:, :groups], np.repeat(largest * np.float32(1 / 127), shared, 1)[:, :groups]


class Oracle:
    """A converted model (`weights`: a directory with params.safetensors) evaluated the long way."""

    def __init__(self, config: DecoderConfig, weights, scheme: Scheme) -> None:
        self.config, self.scheme, self.page_dtype = config, scheme, np.dtype(scheme.page_dtype)
        self.params = load_params(weights)

    def matrix(self, name: str, columns: int) -> np.ndarray:
        storage = self.scheme.storage_of(name)
        if isinstance(storage, GroupFormat):
            q, s = self.params[f"{name}.q_weight"], self.params[f"{name}.q_scale"]
            return dequantize(q, s, storage, columns).astype(np.float64)
        return self.params[f"{name}.weight"].astype(np.float64)

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        y_bias = self.params[f"{name}.bias"].astype(np.float64) if f"{name}.bias" in self.params else 0.0
        columns, storage = x.shape[1], self.scheme.storage_of(name)
        if isinstance(storage, GroupFormat):
            a, scale = quantize_activations(x.astype(np.float32), storage)
            x = (a * scale.astype(np.float64)[:, :, None]).reshape(len(x), -1)[:, :columns]
        return x @ self.matrix(name, columns).T + y_bias

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        scaled = x / np.sqrt((x**2).mean(-1, keepdims=True) + self.config.norm_eps)
        return scaled * self.params[f"{name}.weight"].astype(np.float64)

    def logits(self, token_ids: list[int]) -> np.ndarray:
        """float64 [T, vocab] for a text computed in one go."""
        tied = self.config.tie_word_embeddings
        return self.linear(self.hidden(token_ids), "model.embed_tokens" if tied else "lm_head")

    def hidden(self, token_ids: list[int]) -> np.ndarray:
        """Normed hidden states, float64 [T, hidden]."""
        c, n = self.config, len(token_ids)
        cos, sin = (t.astype(np.float64)[:, None] for t in rope.tables(c, c.max_position_embeddings))
        cos, sin = cos[:n], sin[:n]

        def rotate(x: np.ndarray) -> np.ndarray:
            low, high = np.split(x, 2, -1)
            return np.concatenate([low * cos - high * sin, high * cos + low * sin], -1)

        x = self.matrix("model.embed_tokens", c.hidden_size)[token_ids]
        for i in range(c.num_layers):
            layer = f"model.layers.{i}"
            qkv = self.linear(self.norm(x, f"{layer}.input_layernorm"), f"{layer}.self_attn.qkv_proj")
            heads = qkv.reshape(n, -1, c.head_dim)
            q, k, v = np.split(heads, [c.num_heads, c.num_heads + c.num_kv_heads], 1)
            if c.qk_norm:
                q, k = self.norm(q, f"{layer}.self_attn.q_norm"), self.norm(k, f"{layer}.self_attn.k_norm")
            q, k = rotate(q), rotate(k).astype(self.page_dtype).astype(np.float64)
            v = v.astype(self.page_dtype).astype(np.float64)
            k, v = (np.repeat(t, c.num_heads // c.num_kv_heads, 1) for t in (k, v))
            score = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(c.head_dim)
            age = np.arange(n)[:, None] - np.arange(n)[None]
            seen = (age >= 0) & ((age < c.layers[i].window) if c.layers[i].window else True)
            score = np.where(seen, score, -np.inf)
            weight = np.exp(score - score.max(-1, keepdims=True))
            out = np.einsum("hqk,khd->qhd", weight / weight.sum(-1, keepdims=True), v)
            x = x + self.linear(out.reshape(n, -1), f"{layer}.self_attn.o_proj")
            gate, up = np.split(
                self.linear(self.norm(x, f"{layer}.post_attention_layernorm"), f"{layer}.mlp.gate_up_proj"), 2, -1
            )
            x = x + self.linear(gate / (1 + np.exp(-gate)) * up, f"{layer}.mlp.down_proj")
        return self.norm(x, "model.norm")
