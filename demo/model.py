"""The Llama architecture in plain PyTorch, for training only: fast on CPUs, and named so that the weights are saved as
`LlamaForCausalLM` of `transformers` has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """The sizes of a model; `config` writes them as Hugging Face's config.json does."""

    vocab_size: int = 2048
    hidden_size: int = 256
    intermediate_size: int = 704
    num_layers: int = 6
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    max_length: int = 1024
    rope_theta: float = 10000.0
    eps: float = 1e-5

    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_length,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.eps,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
        }


def _linear(inputs: int, outputs: int, deviation: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=deviation)
    return layer


class Attention(nn.Module):
    def __init__(self, shape: Shape, damping: float) -> None:
        super().__init__()
        self.shape = shape
        h, d = shape.hidden_size, shape.head_dim
        self.q_proj = _linear(h, shape.num_heads * d, h**-0.5)
        self.k_proj = _linear(h, shape.num_kv_heads * d, h**-0.5)
        self.v_proj = _linear(h, shape.num_kv_heads * d, h**-0.5)
        self.o_proj = _linear(shape.num_heads * d, h, damping * h**-0.5)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, length, _ = x.shape
        q, k, v = (p(x).view(rows, length, -1, self.shape.head_dim) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = (_rotate(t, cos, sin).transpose(1, 2) for t in (q, k))
        out = F.scaled_dot_product_attention(q, k, v.transpose(1, 2), is_causal=True, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).reshape(rows, length, -1))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embeddings (Su et al. 2021), halves against each other; x [B, T, heads, D], tables [T, 1, D / 2]."""
    left, right = x.chunk(2, -1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1).to(x.dtype)


class MLP(nn.Module):
    def __init__(self, shape: Shape, damping: float) -> None:
        super().__init__()
        h, f = shape.hidden_size, shape.intermediate_size
        self.gate_proj = _linear(h, f, h**-0.5)
        self.up_proj = _linear(h, f, h**-0.5)
        self.down_proj = _linear(f, h, damping * f**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        damping = (2 * shape.num_layers) ** -0.5
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, shape.eps)
        self.self_attn = Attention(shape, damping)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, shape.eps)
        self.mlp = MLP(shape, damping)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """Token ids [B, T] → hidden states; `logits` of them are products with the embedding, which is tied."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, shape.eps)
        half = torch.arange(0, shape.head_dim, 2) / shape.head_dim
        angles = torch.outer(torch.arange(shape.max_length), shape.rope_theta**-half)[:, None, :]
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x, length = self.embed_tokens(ids), ids.shape[1]
        for layer in self.layers:
            x = layer(x, self.cos[:length], self.sin[:length])
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.embed_tokens.weight.T

    def loss(self, ids: Tensor, marks: Tensor) -> Tensor:
        """Mean cross-entropy over those of the [B, T] ids, each predicted from the ones before it, that are marked."""
        wanted = marks[:, 1:] > 0
        hidden = self(ids)[:, :-1][wanted]
        return F.cross_entropy(self.logits(hidden).float(), ids[:, 1:][wanted].long())

    def named_weights(self) -> dict[str, Tensor]:
        """The weights under the names of `LlamaForCausalLM`."""
        return {f"model.{name}": value.detach() for name, value in self.state_dict().items()}
