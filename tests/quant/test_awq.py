"""Scaling of channels: what is folded leaves the product alone, and what is chosen leaves less error."""

from __future__ import annotations

import numpy as np
import pytest

from llmserve.compile.host import kernel_set
from llmserve.kernels.base import using
from llmserve.models.base import read_family
from llmserve.models.layers import PageFormat
from llmserve.models.llama import TINY
from llmserve.models.parts import Fold
from llmserve.platforms import PLATFORMS
from llmserve.quant import awq, gptq
from llmserve.quant.group import INT3, INT4, dequantize

HEADS, KV_HEADS, DIM, HIDDEN, WIDE = 8, 2, 16, 128, 96


def folds() -> list[Fold]:
    """Those that a Llama layer of these sizes declares."""
    sizes = {"hidden_size": HIDDEN, "intermediate_size": WIDE, "num_attention_heads": HEADS, "head_dim": DIM}
    family, config = read_family(TINY | sizes | {"num_key_value_heads": KV_HEADS, "num_hidden_layers": 1})
    with using(kernel_set(PLATFORMS["cpu"], None, "float32")[0]):
        return list(family.model(config, PageFormat()).model.layers[0].folds())


def layer(rng: np.random.Generator) -> dict[str, np.ndarray]:
    q = (HEADS + 2 * KV_HEADS) * DIM
    shapes = {
        "input_layernorm.weight": (HIDDEN,),
        "self_attn.qkv_proj.weight": (q, HIDDEN),
        "self_attn.qkv_proj.bias": (q,),
        "self_attn.o_proj.weight": (HIDDEN, HEADS * DIM),
        "post_attention_layernorm.weight": (HIDDEN,),
        "mlp.gate_up_proj.weight": (2 * WIDE, HIDDEN),
        "mlp.down_proj.weight": (HIDDEN, WIDE),
    }
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def forward(w: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """A decoder layer in float64, its attention the mean over earlier tokens: scores do not see what is folded."""
    w = {name: array.astype(np.float64) for name, array in w.items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"]

    qkv = norm(x, "input_layernorm") @ w["self_attn.qkv_proj.weight"].T + w["self_attn.qkv_proj.bias"]
    q, k, v = np.split(qkv.reshape(len(x), -1, DIM), [HEADS, HEADS + KV_HEADS], 1)
    k, v = (np.repeat(t, HEADS // KV_HEADS, 1) for t in (k, v))
    score = np.einsum("qhd,khd->hqk", q, k) / DIM
    weight = np.exp(score - score.max(-1, keepdims=True))
    out = np.einsum("hqk,khd->qhd", weight / weight.sum(-1, keepdims=True), v).reshape(len(x), -1)
    x = x + out @ w["self_attn.o_proj.weight"].T
    gate, up = np.split(norm(x, "post_attention_layernorm") @ w["mlp.gate_up_proj.weight"].T, 2, -1)
    return x + (gate / (1 + np.exp(-gate)) * up) @ w["mlp.down_proj.weight"].T


def test_folding_leaves_a_layer_what_it_was() -> None:
    """With any scales that are alike where channels share a row: to float32's rounding of the weights, 6e-8 of each,
    some hundred of which add up in an output."""
    rng = np.random.default_rng(0)
    weights, x = layer(rng), rng.standard_normal((20, HIDDEN))
    folded = dict(weights)
    for fold in folds():
        per_row = np.exp(rng.standard_normal(int(fold.rows.max()) + 1)).astype(np.float32)
        awq.apply(fold, per_row[fold.rows], folded)
    assert all((folded[name] != weights[name]).any() for name in weights)
    expected = forward(weights, x)
    np.testing.assert_allclose(forward(folded, x), expected, atol=1e-5 * np.abs(expected).max())


def test_channels_of_one_row_share_their_scale() -> None:
    fold = next(fold for fold in folds() if fold.consumer == "self_attn.o_proj")
    second = np.diag(np.random.default_rng(0).exponential(size=HEADS * DIM)).astype(np.float32)
    scales = awq.channel_scales(fold, second, 0.5)
    assert len(set(fold.rows)) == KV_HEADS * DIM
    for row in set(fold.rows):
        assert len(set(scales[fold.rows == row])) == 1
    assert scales.max() * scales.min() == pytest.approx(1, rel=1e-5)


def test_dead_channels_do_no_harm() -> None:
    fold = Fold("b", "a", np.arange(4))
    assert np.isfinite(awq.channel_scales(fold, np.diag([0, 1, 4, 9]).astype(np.float32), 0.5)).all()
    np.testing.assert_array_equal(awq.channel_scales(fold, np.zeros((4, 4), np.float32), 0.5), np.ones(4))


@pytest.mark.parametrize("with_gptq", [False, True])
@pytest.mark.parametrize("fmt", [INT3, INT4], ids=lambda fmt: fmt.name)
def test_outlier_channels_are_rounded_more_finely(fmt, with_gptq: bool) -> None:
    """A few channels that carry a hundred times as much as the others, as trained models have them: the output errs
    less with the scales chosen, by the full error on inputs and with all rows."""
    rng = np.random.default_rng(1)
    k = 128
    inputs = rng.standard_normal((600, k)).astype(np.float32)
    inputs[:, rng.permutation(k)[:6]] *= 100
    w, second, fold = rng.standard_normal((200, k)).astype(np.float32), inputs.T @ inputs, Fold("b", "a", np.arange(k))

    def error(scales: np.ndarray) -> float:
        moments = awq.moments(scales, second)
        factored = gptq.factor(moments, 32) if with_gptq else gptq.factor(np.eye(k, dtype=np.float32), 32)
        q_weight, q_scale, _ = gptq.quantize(w * scales, fmt, factored)
        return float(np.square(inputs @ (dequantize(q_weight, q_scale, fmt, k) / scales - w).T).mean())

    scales, alpha = awq.choose(fold, w, second, fmt, gptq.factor(second, 32) if with_gptq else None)
    assert alpha > 0 or with_gptq
    assert error(scales) <= (1.0 if with_gptq else 0.75) * error(np.ones(k, np.float32))


def test_a_scaled_factor_is_the_factor_of_the_scaled_moments() -> None:
    rng = np.random.default_rng(2)
    inputs = rng.standard_normal((300, 64)) @ (np.eye(64) + rng.standard_normal((64, 64)) * 0.2)
    second, scales = (inputs.T @ inputs).astype(np.float32), np.exp(rng.standard_normal(64) / 2).astype(np.float32)
    factored = awq.scaled(gptq.factor(second, 32, damping=0), scales)
    unit = np.eye(64) + factored.feedback
    order = factored.order
    expected = awq.moments(scales, second)[np.ix_(order, order)]
    np.testing.assert_allclose((unit * factored.energy) @ unit.T, expected, atol=1e-4 * np.abs(expected).max())
