"""The protocol of kernel sets, and the set that is active while a model is traced.

Layers call these methods and do not know the platform; a new platform implements this protocol.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from tvm.relax.frontend.nn import Tensor

from ..quant.group import Storage


@dataclass(frozen=True)
class Batch:
    """One step's tokens, as the exported function receives them: step.INDEX and step.ROTARY, by name."""

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    tile_seq: Tensor
    tile_row: Tensor
    tile_rows: Tensor
    page_indptr: Tensor
    page_values: Tensor
    logit_rows: Tensor
    cos: Tensor
    sin: Tensor


FUSED_ACTIVATIONS = ("silu", "gelu_tanh")
"""What `gated` computes in one pass: x / (1 + e⁻ˣ), and ½x(1 + tanh(√(2/π)(x + 0.044715x³))) (Hendrycks & Gimpel 2016).
Any other activation is made of plain operators (models/activations.py)."""


@dataclass(frozen=True)
class ChoiceArguments:
    """The arguments by which a token is chosen from each row of logits: few arrays, as each makes a call slower.

    knobs float32 [R, 4]: 1 / temperature, or 0 for the first of the largest (greedy); top_p; min_p; the row's random
    number in [0, 1). limits int32 [R, 4]: top_k, 0 for all; which of `masks` is the row's, -1 for none; the first of
    its adjustments; one past the last of them.
    ids int32 [A], amounts float32 [A, 3]: adjustments; of one row's ids no two are alike. A logit v of ids[i] becomes
    v + amounts[i, 0], then divided by amounts[i, 1] if positive and times it if not, then less amounts[i, 2];
    infinity there bans it, whatever v is.
    masks int32 [K, ceil(vocab / 32)]: token i may be chosen where bit i % 32 of word i // 32 is set.
    A and K are at least 1, as not every device has empty arrays: the first of each is nobody's. What no row refers to
    is not looked at.
    """

    knobs: Tensor
    limits: Tensor
    ids: Tensor
    amounts: Tensor
    masks: Tensor


@dataclass(frozen=True)
class AttentionShape:
    """The sizes and settings that attention kernels depend on.

    Attributes:
        window: keys a query sees, itself included; 0 for all of them.
        page_dtype: of keys and values in the cache.
        tables: rotary tables that lie side by side in `Batch.cos` and `Batch.sin`.
        table: the one that turns queries and keys; None leaves them as they are.
        softcap: scores s become softcap · tanh(s / softcap) (Gemma 2); 0 leaves them as they are.
    """

    heads: int
    kv_heads: int
    head_dim: int
    page_size: int
    window: int = 0
    page_dtype: str = "float16"
    tables: int = 1
    table: int | None = 0
    softcap: float = 0.0

    @property
    def group(self) -> int:
        """Query heads per key-value head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class NormKind:
    """A norm over rows: y = (x - m) / √(mean((x - m)²) + eps) · weight + bias.

    m is the mean of x if `centred` (Ba et al. 2016), else 0 (RMS norm, Zhang & Sennrich 2019). `weight` and `bias`,
    float32 [width], are there or not; a norm's parameters are those that are, in this order.
    """

    eps: float
    centred: bool = False
    weight: bool = True
    bias: bool = False

    @property
    def name(self) -> str:
        """For kernels and cost tables."""
        return "layer_norm" if self.centred else "rms_norm"


class Weight(Protocol):
    """One weight matrix [out, in] in this platform's memory layout, and the operators over it."""

    @property
    def params(self) -> Mapping[str, tuple[tuple[int, ...], str]]:
        """Parameter suffix → (shape, dtype) of this layout."""

    def arrange(self, stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """From storage (`q_weight` and `q_scale`, or `weight`; `bias`) to `params`."""

    def matmul(self, x: Tensor, params: Mapping[str, Tensor], out: Tensor | None = None) -> Tensor:
        """x [M, in] → x Wᵀ + b [M, out], written into the caller's `out` if there is one."""

    def normed_matmul(
        self,
        x: Tensor,
        residual: Tensor | None,
        norm: NormKind,
        norm_params: Sequence[Tensor],
        params: Mapping[str, Tensor],
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`matmul` of `KernelSet.norm`, and x + residual (or x)."""

    def gated_matmul(self, gate_up: Tensor, activation: str, params: Mapping[str, Tensor]) -> Tensor:
        """`matmul` of `KernelSet.gated`."""

    def lookup(self, ids: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        """ids int32 [M] → rows [M, in]."""


class UnfusedWeight:
    """A base for weights without fused products: norm or activation, then the product, as two operators."""

    def normed_matmul(
        self: Weight,
        x: Tensor,
        residual: Tensor | None,
        norm: NormKind,
        norm_params: Sequence[Tensor],
        params: Mapping[str, Tensor],
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        normed, total = active().norm(x, residual, norm, norm_params)
        return self.matmul(normed, params, out), total

    def gated_matmul(self: Weight, gate_up: Tensor, activation: str, params: Mapping[str, Tensor]) -> Tensor:
        return self.matmul(active().gated(gate_up, activation), params)


class KernelSet(Protocol):
    """The operators that a decoder needs. `compute_dtype` is that of activations."""

    @property
    def name(self) -> str: ...

    @property
    def compute_dtype(self) -> str: ...

    @property
    def page_dtype(self) -> str | None:
        """Of keys and values in the cache; None leaves it to the scheme."""

    def weight(self, out_features: int, in_features: int, storage: Storage, bias: bool) -> Weight: ...

    def norm(
        self, x: Tensor, residual: Tensor | None, norm: NormKind, params: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """(norm(x + residual), x + residual); a residual of None adds nothing."""

    def gated(self, gate_up: Tensor, activation: str) -> Tensor:
        """activation(gate) * up, where gate_up [M, 2 * width] holds gate, then up; one of FUSED_ACTIVATIONS."""

    def take_rows(self, x: Tensor, residual: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(x[rows], residual[rows]); x and residual [M, …] of any widths, rows int32 [R]."""

    def query_tile(self, shape: AttentionShape) -> int:
        """Consecutive query tokens that one attention tile may hold."""

    def page_tensor(self, shape: AttentionShape, num_pages: Any) -> tuple[Any, ...]:
        """Shape of one layer's pages, of `shape.page_dtype`."""

    def rope_append(
        self, qkv: Tensor, norms: tuple[Tensor, ...], eps: float, batch: Batch, pages: Tensor, shape: AttentionShape
    ) -> tuple[Tensor, Tensor]:
        """(rotated queries [M, heads * D], pages with this step's keys and values written in place)."""

    def attention(self, q: Tensor, batch: Batch, pages: Tensor, shape: AttentionShape, scale: float) -> Tensor: ...

    def cap_logits(self, logits: Tensor, scale: float, cap: float) -> Tensor:
        """Logits float32 [R, vocab], written in place and returned: x · scale, then cap · tanh(x / cap) unless cap is
        0."""

    def sample(self, logits: Tensor, choices: ChoiceArguments, chosen: Tensor) -> Tensor:
        """A token for each row of logits float32 [R, vocab], which stay as they are.

        Writes and returns `chosen` int32 [R, 2]: the token, and the bits of the row's largest logit after adjustments
        and mask, float32. That is a NaN if one of them is; where it is not finite, the token means nothing. Otherwise
        it is the first of the largest, or the draw from softmax(logits / temperature) after min_p, top_k and top_p of
        what these left, by the inverse of the cumulative sum in the order of ids. Of equals the lower ids stay.
        A row's token depends on nothing but its own arguments.
        """


_ACTIVE: ContextVar[KernelSet] = ContextVar("active kernel set")


def active() -> KernelSet:
    """The kernel set of the model that is being built or traced."""
    return _ACTIVE.get()


@contextmanager
def using(kernels: KernelSet) -> Iterator[None]:
    token = _ACTIVE.set(kernels)
    try:
        yield
    finally:
        _ACTIVE.reset(token)
