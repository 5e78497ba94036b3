"""Basic parts of decoders: weight matrices, tables of numbers, and norms, as tvm modules.

`Linear` and `Embedding` hold no weights until `bind` gives them a layout, chosen by scheme and platform. Each part
declares its own shape, and the order of its rows where that is not the checkpoint's. Nothing here knows a family.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tvm import relax
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op

from ..kernels.base import FUSED_ACTIVATIONS, NormKind, Weight, active
from .activations import activate

Order = npt.NDArray[np.int64]
"""Row r of ours is row order[r] of the checkpoint's."""


def walk(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every module below `module` with its dotted name, in the order in which parameters are packed."""
    children = enumerate(module) if isinstance(module, nn.ModuleList) else vars(module).items()
    for name, child in children:
        if isinstance(child, nn.Module):
            yield f"{prefix}{name}", child
            yield from walk(child, f"{prefix}{name}.")


@dataclass(frozen=True)
class Fold:
    """A matrix whose input channels may be scaled, and their producer: channel c comes from row `rows[c]` of
    `producer` (and of its bias). Names are those below the layer."""

    consumer: str
    producer: str
    rows: Order


class Matrix(nn.Module):
    """A weight matrix [out, in] (and bias) that is stored as a scheme says.

    `parts`: the rows of each of the checkpoint's tensors that are stacked in it. `order`: of its rows, if it is not the
    checkpoint's.
    """

    def __init__(
        self, out_features: int | tuple[int, ...], in_features: int, bias: bool = False, order: Order | None = None
    ) -> None:
        self.parts = (out_features,) if isinstance(out_features, int) else out_features
        self.out_features, self.in_features, self.has_bias = sum(self.parts), in_features, bias
        self.order = order
        self.weight_kernel: Weight | None = None

    def bind(self, weight: Weight) -> None:
        """Create the parameters of this layout; must happen before the module is exported."""
        self.weight_kernel = weight
        for name, (shape, dtype) in weight.params.items():
            setattr(self, name, nn.Parameter(shape, dtype))

    def arrange(self, stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The parameters' values from the stored tensors, see `Weight.arrange`."""
        return self._bound()[0].arrange(stored)

    def _bound(self) -> tuple[Weight, dict[str, Tensor]]:
        assert self.weight_kernel is not None, "bind() comes first"
        return self.weight_kernel, {name: getattr(self, name) for name in self.weight_kernel.params}


class Linear(Matrix):
    """x [M, in] → [M, out]."""

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        kernel, params = self._bound()
        return kernel.matmul(x, params, out)

    def normed(
        self, x: Tensor, residual: Tensor | None, norm: Norm | None, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(the product with norm(x + residual), x + residual); a residual of None adds nothing, a norm of None does
        nothing."""
        if norm is None:
            total = added(x, residual)
            return self(total.astype(active().compute_dtype), out), total
        kernel, params = self._bound()
        return kernel.normed_matmul(x, residual, norm.kind, norm.params, params, out)

    def gated(self, gate_up: Tensor, activation: str) -> Tensor:
        """The product with activation(gate) * up, where gate_up [M, 2 * in] holds gate, then up."""
        if activation in FUSED_ACTIVATIONS:
            kernel, params = self._bound()
            return kernel.gated_matmul(gate_up, activation, params)
        gate, up = op.split(gate_up, 2, axis=1)
        return self(activate(activation, gate) * up)


class Embedding(Linear):
    """Token ids [M] → rows [M, in]; the same matrix can serve as the output head."""

    def lookup(self, ids: Tensor) -> Tensor:
        kernel, params = self._bound()
        return kernel.lookup(ids, params)


class Table(nn.Module):
    """Float32 numbers [shape] that no scheme rounds: learned positions, norms of single heads, trained scalars."""

    def __init__(self, *shape: int, order: Order | None = None) -> None:
        self.order = order
        self.weight = nn.Parameter(shape, "float32")


class Norm(nn.Module):
    """A norm over rows of `width` elements: kernels.base.NormKind says which. `order`: of its elements."""

    def __init__(self, width: int, kind: NormKind, order: Order | None = None) -> None:
        self.width, self.kind, self.order = width, kind, order
        if kind.weight:
            self.weight = nn.Parameter((width,), "float32")
        if kind.bias:
            self.bias = nn.Parameter((width,), "float32")

    @property
    def params(self) -> tuple[Tensor, ...]:
        return (*((self.weight,) if self.kind.weight else ()), *((self.bias,) if self.kind.bias else ()))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """norm(x + residual); where a product follows, it does that itself (`Linear.normed`)."""
        return self.both(x, residual)[0]

    def both(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """(norm(x + residual), x + residual); a residual of None adds nothing."""
        return active().norm(x, residual, self.kind, self.params)


class RMSNorm(Norm):
    """Zhang & Sennrich 2019."""

    def __init__(self, width: int, eps: float, order: Order | None = None) -> None:
        super().__init__(width, NormKind(eps), order)


class LayerNorm(Norm):
    """Ba et al. 2016, with a bias."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, NormKind(eps, centred=True, bias=True))


class BiaslessLayerNorm(Norm):
    """Ba et al. 2016, without one."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, NormKind(eps, centred=True))


def picked(x: Tensor, rows: Tensor) -> Tensor:
    """x [N, …], rows int32 [R] → those rows, [R, …]; a number out of bounds picks the nearest row."""
    return op.wrap_nested(relax.op.take(x._expr, rows._expr, axis=0, mode="clip"), "picked")


def added(x: Tensor, residual: Tensor | None) -> Tensor:
    """x + residual in the residual sum's dtype."""
    return x if residual is None else x.astype(residual.dtype) + residual


def scaled(x: Tensor, factor: float) -> Tensor:
    """x · factor in x's dtype; x itself for 1."""
    return x if factor == 1.0 else x * factor


class HeadNorm(nn.Module):
    """A LayerNorm over each head's elements (Ba et al. 2016), as plain operators.

    The numbers, float32, are of one head, [dim], which serve all, or of all heads, [heads, dim], or in one vector that
    is stacked of as many tensors. `order`: of those of a vector.
    """

    def __init__(
        self, dim: int, eps: float, shape: tuple[int, ...], order: Order | None = None, bias: bool = False
    ) -> None:
        self.dim, self.eps, self.order = dim, eps, order
        self.stacked = shape[0] // dim if len(shape) == 1 else 1
        self.weight = nn.Parameter(shape, "float32")
        if bias:
            self.bias = nn.Parameter(shape, "float32")

    def forward(self, x: Tensor) -> Tensor:
        """x [M, heads * dim] → the same, each head normed."""
        heads = op.reshape(x.astype("float32"), (x.shape[0], -1, self.dim))
        centred = heads - op.sum(heads, axis=-1, keepdims=True) * (1 / self.dim)
        mean = op.sum(op.square(centred), axis=-1, keepdims=True) * (1 / self.dim)
        normed = centred / op.sqrt(mean + self.eps) * self.by_head(self.weight)
        if hasattr(self, "bias"):
            normed = normed + self.by_head(self.bias)
        return op.reshape(normed, x.shape).astype(x.dtype)

    def by_head(self, numbers: Tensor) -> Tensor:
        """[heads or 1, dim]."""
        return op.reshape(numbers, (-1, self.dim))
