"""Families that stand for others in tests that are slow: one for each way to put a model together, by the registry."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from llmserve.compile.host import kernel_set
from llmserve.kernels.base import FUSED_ACTIVATIONS, using
from llmserve.models.base import families, read_family
from llmserve.models.base import family as find
from llmserve.models.layers import PageFormat
from llmserve.models.parts import Norm, walk
from llmserve.platforms import PLATFORMS


@cache
def representatives() -> list[str]:
    """One family for each way in which a quantized model can be put together: the kinds of norms that go into products,
    the MLP and whether its activation is fused, and whether rows are stored in another order. What else families differ
    in, float32 shows."""
    found: dict[tuple, str] = {}
    with using(kernel_set(PLATFORMS["cpu"], None, "float32")[0]):
        for name in families():
            family, config = read_family(find(name).tiny)
            layer = family.model(config, PageFormat()).model.layers[0]
            kinds = frozenset(module.kind for _, module in walk(layer) if isinstance(module, Norm))
            norms = frozenset((kind.centred, kind.weight, kind.bias) for kind in kinds)
            fused = config.activation in FUSED_ACTIVATIONS
            way = (norms, type(layer.mlp).of, fused, layer.self_attn.qkv_proj.order is None)
            found.setdefault(way, name)
    return sorted(found.values())


def by_registry() -> list[Any]:
    """All families as parameters of a test, those that a representative stands for marked as slow."""
    chosen = representatives()
    return [name if name in chosen else pytest.param(name, marks=pytest.mark.slow) for name in families()]
