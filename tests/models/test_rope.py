"""Rotary tables against transformers' own initialisers, for every variant and both spellings of the config."""

from __future__ import annotations

import numpy as np
import pytest

from llmserve.errors import ConfigError, UnsupportedError
from llmserve.models import rope
from llmserve.models.base import read_family
from llmserve.models.llama import TINY

from ..skips import package

VARIANTS = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    "yarn-all": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
    },
    "yarn-attention": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "attention_factor": 1.3,
        "truncate": False,
    },
}


def old_spelling(parameters):
    renamed = {("type" if k == "rope_type" else k): v for k, v in parameters.items()}
    return {**TINY, "rope_theta": 50000.0, "rope_scaling": renamed}


def new_spelling(parameters):
    plain = {k: v for k, v in TINY.items() if k != "rope_theta"}
    return {**plain, "rope_parameters": {**parameters, "rope_theta": 50000.0}}


@pytest.mark.reference
@pytest.mark.parametrize("spelling", [old_spelling, new_spelling], ids=["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("name", VARIANTS)
def test_frequencies_equal_transformers(name, spelling):
    transformers = package("transformers", "transformers as a reference")
    torch = package("torch", "transformers as a reference")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    raw = spelling(VARIANTS[name])
    _, config = read_family(raw)
    reference = LlamaRotaryEmbedding(
        transformers.LlamaConfig(**{k: v for k, v in new_spelling(VARIANTS[name]).items() if k != "architectures"})
    )
    length = 256  # within max_position_embeddings, where `dynamic` does not stretch yet
    expected_cos, expected_sin = reference(torch.zeros(1), torch.arange(length)[None])
    cos, sin = rope.tables(config, length)
    half = config.head_dim // 2
    # Both are float32; angles reach 256, whose float32 spacing is 3e-5.
    np.testing.assert_allclose(cos, expected_cos[0, :, :half].numpy(), atol=5e-5)
    np.testing.assert_allclose(sin, expected_sin[0, :, :half].numpy(), atol=5e-5)


def test_dynamic_is_stretched_for_the_length_that_is_served():
    _, config = read_family(new_spelling(VARIANTS["dynamic"]))
    ((short, _),) = rope.inverse_frequencies(config, 512)
    ((long, _),) = rope.inverse_frequencies(config, 1024)
    assert short[0] == long[0] == 1.0
    # NTK-aware base: theta * (factor * L / L0 - (factor - 1)) ** (d / (d - 2)), with L / L0 = 2 and factor 2.
    theta = 50000.0 * 3 ** (config.head_dim / (config.head_dim - 2))
    np.testing.assert_allclose(long[-1], theta ** (-(config.head_dim - 2) / config.head_dim), rtol=1e-5)
    assert long[-1] < short[-1]
    assert config.rope[0].stretches
    _, fixed = read_family(new_spelling({"rope_type": "dynamic", "factor": 1.0, "alpha": 1000.0}))
    assert not fixed.rope[0].stretches


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"rope_scaling": {"type": "ntk", "factor": 2.0}}, "ntk.*default, linear, dynamic, llama3, yarn, longrope"),
        ({"rope_scaling": {"type": ["linear"], "factor": 2.0}}, "rope type .'linear'. is not supported"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "'short_factor' must be a list of 16 numbers"),
        ({"rope_scaling": {"type": "linear", "factor": float("inf")}}, "'factor' must be a positive number"),
        ({"rope_scaling": "linear"}, "'rope_scaling' must be an object"),
        ({"rope_scaling": {"type": "linear"}}, "'factor'"),
        ({"hidden_act": "tanh"}, "hidden_act.*tanh.*silu"),
        ({"hidden_act": ["silu"]}, "hidden_act.*silu"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers.*1024"),
        ({"vocab_size": 10**400}, "vocab_size.*integer"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"num_attention_heads": 6}, "hidden_size"),
        ({"hidden_size": "many"}, "hidden_size.*integer"),
        ({"model_type": "lama"}, "lama.*did you mean 'llama'.*qwen3"),
        ({"model_type": None}, "model_type"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change, complaint):
    with pytest.raises((ConfigError, UnsupportedError), match=complaint):
        read_family({**TINY, **change})
