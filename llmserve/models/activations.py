"""Activations as plain operators; those that fused kernels compute are kernels.base.FUSED_ACTIVATIONS."""

from __future__ import annotations

from tvm.relax.frontend.nn import Tensor, op


def activate(name: str, x: Tensor) -> Tensor:
    """`name`: a value of config.ACTIVATIONS. relu2 is max(x, 0)² (So et al. 2021)."""
    if name == "silu":
        return op.silu(x)
    if name == "gelu":
        return op.gelu(x)
    if name == "gelu_tanh":
        return op.gelu(x, approximate="tanh")
    if name == "relu2":
        return op.square(op.relu(x))
    raise ValueError(f"no plain operators for the activation {name!r}")
