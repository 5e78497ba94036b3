"""config.json as models are published, and with as little in it as may be: read as the reference reads it.

The rows of published.json have the keys and spellings of released models, which get few layers and words here. No
weights are made.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmserve.compile.random_checkpoint import tensor_shapes
from llmserve.errors import ConfigError, UnsupportedError
from llmserve.models import rope
from llmserve.models.base import read_family

from ..skips import package

SMALL = {"num_hidden_layers": 5, "vocab_size": 1024, "pad_token_id": 0, "bos_token_id": 1}
PUBLISHED: dict[str, dict[str, Any]] = {
    name: {**row, **SMALL} for name, row in json.loads(Path(__file__).with_name("published.json").read_text()).items()
}
LONG = {name: PUBLISHED["phi-4-mini"]["rope_scaling"][name] for name in ("short_factor", "long_factor")}
YARN = PUBLISHED["olmo-3-32b"]["rope_scaling"]
SLIDES, FULL = ["sliding_attention"], ["full_attention"]
SIZES = {"hidden_size": 512, "intermediate_size": 512, "num_attention_heads": 32, **SMALL}
FAMILIES = sorted({row["model_type"] for row in PUBLISHED.values()})
# Nothing but sizes: all else is the class's default.
BARE = {f"bare {kind}": {"model_type": kind, **SIZES} for kind in FAMILIES}
BARE["bare ministral"]["head_dim"] = 64  # without, the reference breaks down
# What changes what is computed, spelled in other ways.
OTHERS = {
    "phi3, new spelling": {
        **{k: v for k, v in PUBLISHED["phi-4-mini"].items() if k not in ("rope_scaling", "rope_theta")},
        "rope_parameters": {"rope_type": "longrope", "rope_theta": 5000.0, "partial_rotary_factor": 0.75, **LONG},
    },
    "olmo3, new spelling": {
        **{k: v for k, v in PUBLISHED["olmo-3-32b"].items() if k not in ("rope_scaling", "rope_theta")},
        "rope_parameters": {
            "full_attention": {**YARN, "rope_theta": 5e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "olmo3, theta of full layers only": {**PUBLISHED["olmo-3-32b"], "rope_theta": 7000.0},
    "smollm3 with windows": {
        **{k: v for k, v in PUBLISHED["smollm3-3b"].items() if k not in ("layer_types", "no_rope_layers")},
        "use_sliding_window": True,
        "sliding_window": 512,
        "no_rope_layer_interval": 2,
    },
    "cohere2, layer types": {**PUBLISHED["command-r7b"], "layer_types": FULL + SLIDES * 4},
    "seed_oss, null is heads": {**BARE["bare seed_oss"], "head_dim": None, "num_key_value_heads": None},
    "ministral3, no dict": {**BARE["bare ministral3"], "rope_theta": 77.0},
    "mistral with layer types": {
        **PUBLISHED["mistral-small-3.1"],
        "sliding_window": 64,
        "layer_types": PUBLISHED["olmo-3-32b"]["layer_types"],
    },
}


@pytest.mark.reference
@pytest.mark.parametrize("name", [*PUBLISHED, *BARE, *OTHERS])
def test_configs_are_read_as_the_reference_reads_them(name):
    """Every tensor's name and shape, each layer's window and rotary table, the scalars."""
    torch = package("torch", "torch as a reference")
    transformers = package("transformers", "transformers as a reference")
    row = {**PUBLISHED, **BARE, **OTHERS}[name]
    found, ours = read_family(row)
    theirs = transformers.AutoConfig.for_model(**row)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(theirs)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}  # of tied matrices, one
    assert tensor_shapes(row) == shapes
    assert ours.max_position_embeddings == theirs.max_position_embeddings
    eps = model.model.norm
    assert ours.norm_eps == getattr(eps, "variance_epsilon", getattr(eps, "eps", None))
    for kind, layer in zip(ours.layers, model.model.layers, strict=True):
        window = getattr(layer.self_attn, "sliding_window", theirs.to_dict().get("sliding_window")) or 0
        slides = getattr(layer.self_attn, "is_sliding", True)  # EXAONE's attention knows the window in any case
        assert kind.window == (window if slides else 0)
        scale = ours.attention_scale or ours.head_dim**-0.5
        assert math.isclose(scale, layer.self_attn.scaling)
    turning = {
        "smollm3": lambda i: bool(theirs.no_rope_layers[i]),
        "cohere2": lambda i: theirs.layer_types[i] == "sliding_attention",
        "exaone4": lambda i: theirs.sliding_window is None or theirs.layer_types[i] == "sliding_attention",
    }.get(found.name, lambda i: True)
    assert [kind.rope is not None for kind in ours.layers] == [turning(i) for i in range(5)]
    tables = rotary_tables(type(model.model.rotary_emb)(theirs), theirs)
    lengths = (1024, ours.max_position_embeddings)  # longrope's short and long
    for length in lengths:
        for table, (own, factor) in enumerate(rope.inverse_frequencies(ours, length)):
            expected, scaling = tables[table](length)
            np.testing.assert_allclose(own[: len(expected)], expected, rtol=1e-5)
            assert not own[len(expected) :].any() and math.isclose(factor, scaling, rel_tol=1e-6)


def rotary_tables(module, config):
    """For each of our tables, of a length → (inverse frequencies, factor) of the reference's module."""

    def of(prefix: str, length: int):
        scaling = getattr(module, f"{prefix}attention_scaling")
        if config.rope_parameters.get("rope_type") == "longrope":
            from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

            found, scaling = ROPE_INIT_FUNCTIONS["longrope"](config, seq_len=length)
            return found.numpy(), scaling
        return getattr(module, f"{prefix}inv_freq").numpy(), scaling

    prefixes = ("full_attention_", "sliding_attention_") if hasattr(module, "full_attention_inv_freq") else ("",)
    return [lambda length, prefix=prefix: of(prefix, length) for prefix in prefixes]


@pytest.mark.parametrize(
    "name, change, complaint",
    [
        ("phi-4", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear.*longrope"),
        ("phi-4-mini", {"rope_scaling": {"type": "su", **LONG, "long_factor": [1.0] * 47}}, "long_factor.*48 numbers"),
        ("olmo-3-32b", {"rope_parameters": YARN}, "rope_parameters.*full_attention and sliding_attention"),
        ("olmo-3-32b", {"rope_scaling": {**YARN, "truncate": False}}, "truncate"),
        ("olmo-3-32b", {"sliding_window": None}, "sliding_window"),
        ("command-r7b", {"use_qk_norm": True}, "use_qk_norm"),
        ("command-r7b", {"head_dim": 64}, "head_dim.*128"),
        ("ministral-3-8b", {"rope_parameters": YARN}, "llama_4_scaling_beta"),
        ("smollm3-3b", {"no_rope_layers": [1, 1, 1, 0]}, "no_rope_layers.*5 layers"),
        ("granite-3.3-8b", {"logits_scaling": 0}, "logits_scaling.*positive"),
        ("glm-4-9b-0414", {"partial_rotary_factor": 2.0}, "partial_rotary_factor"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(name, change, complaint):
    with pytest.raises((ConfigError, UnsupportedError), match=complaint):
        read_family({**PUBLISHED[name], **change})


def test_early_names_of_longrope():
    """`su` and, of this family, `yarn`."""
    row = PUBLISHED["phi-3.5-mini"]
    for name in ("su", "yarn"):
        for spelling in ("type", "rope_type"):
            assert read_family({**row, "rope_scaling": {**LONG, spelling: name}}) == read_family(row)
