"""Settings in a GGUF file's metadata: each is honoured, or refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmserve.errors import CheckpointError, UnsupportedError
from llmserve.weights.foreign.gguf import GGUF

from .gguf_files import write

LLAMA = {"context_length": 256, "embedding_length": 64, "block_count": 5, "feed_forward_length": 96}
LLAMA |= {"attention.head_count": 4, "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-6}
EMBEDDING = {"token_embd.weight": np.ones((64, 64), np.float32)}
HALF = np.arange(1, 9, dtype=np.float32)


def config_of(tmp_path: Path, name: str = "llama", tensors: Any = None, **changes: Any) -> dict[str, Any]:
    keys = {key.replace("__", "."): value for key, value in changes.items()}
    written = {key: value for key, value in (LLAMA | keys).items() if value is not None}
    more = {key: written.pop(key) for key in list(written) if key.startswith("general.")}
    return GGUF(write(tmp_path / "x.gguf", name, written, EMBEDDING | (tensors or {}), **more)).config


@pytest.mark.parametrize(
    ("changes", "scaling"),
    [
        ({}, None),
        ({"rope__scaling__type": "none", "rope__scaling__factor": 4.0}, None),
        ({"rope__scaling__factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),  # linear where no type is named
        ({"rope__scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),  # its old name
        (
            {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
        ),
        (
            {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0, "rope__scaling__yarn_attn_factor": 1.5}
            | {"rope__scaling__original_context_length": 64, "rope__scaling__yarn_ext_factor": 1.0},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.5},
        ),
        (
            {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0, "rope__scaling__attn_factor": 2.0},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
            | {"attention_factor": pytest.approx(2 * (0.1 * math.log(4) + 1))},
        ),
    ],
)
def test_rope_scaling_under_all_its_keys(tmp_path: Path, changes: dict[str, Any], scaling: Any) -> None:
    config = config_of(tmp_path, **changes)
    assert config.get("rope_scaling") == scaling and config["rope_theta"] == 10000.0


def test_divisors_that_are_not_llama_3s_are_two_equal_lists(tmp_path: Path) -> None:
    config = config_of(tmp_path, tensors={"rope_freqs.weight": HALF})
    assert config["rope_scaling"]["rope_type"] == "longrope" and config["rope_scaling"]["attention_factor"] == 1.0
    assert config["rope_scaling"]["long_factor"] == config["rope_scaling"]["short_factor"] == HALF.tolist()
    assert "rope_scaling" not in config_of(tmp_path, tensors={"rope_freqs.weight": np.ones(8, np.float32)})


def test_numbers_a_layer_count_if_they_are_all_the_same(tmp_path: Path) -> None:
    assert config_of(tmp_path, feed_forward_length=[96] * 5)["intermediate_size"] == 96


@pytest.mark.parametrize(
    ("changes", "tensors", "error", "words"),
    [
        ({"attention__sliding_window": 64}, {}, UnsupportedError, r"llama\.attention\.sliding_window is 64; it is not"),
        ({"attn_logit_softcapping": 50.0}, {}, UnsupportedError, r"llama\.attn_logit_softcapping is 50\.0"),
        ({"attention__causal": False}, {}, UnsupportedError, r"llama\.attention\.causal is False; it must be True"),
        ({"expert_count": 8}, {}, UnsupportedError, r"mixture of experts"),
        ({"attention__value_length": 8}, {}, UnsupportedError, r"value_length is 8; it must be 16"),
        ({"rope__dimension_count": 8}, {}, UnsupportedError, r"dimension_count is 8; it must be 16, all of a head"),
        ({"rope__freq_base_swa": 1e6}, {}, UnsupportedError, r"freq_base_swa"),
        ({"rope__scaling__type": "dynamic"}, {}, UnsupportedError, r"type is 'dynamic'; it must be one of none"),
        ({"rope__scaling__type": "longrope"}, {}, CheckpointError, r"no tensor rope_factors_long\.weight"),
        ({"rope__scaling__yarn_ext_factor": 0.5, "rope__scaling__type": "yarn", "rope__scaling__factor": 2.0}, {},
         UnsupportedError, r"yarn_ext_factor is 0\.5; it must be 1\.0"),
        ({"rope__scaling__type": "yarn", "rope__scaling__factor": 2.0}, {"rope_freqs.weight": HALF},
         UnsupportedError, r"must be none where there is rope_freqs"),
        ({"rope__scaling__attn_factor": 1.5}, {}, UnsupportedError, r"attn_factor is 1\.5; it is read with yarn only"),
        ({}, {"rope_freqs.weight": np.ones(5, np.float32)}, CheckpointError, r"is \[5\], not half of what turns"),
        ({}, {"rope_freqs.weight": -HALF}, CheckpointError, r"must hold positive numbers"),
        ({"pooling_type": 2}, {}, UnsupportedError, r"llama\.pooling_type is 2; the mean \(1\)"),
        ({"embedding_length": 1.5}, {}, CheckpointError, r"embedding_length must be a positive number, not 1\.5"),
        ({"block_count": 1 << 20}, {}, CheckpointError, r"block_count must be at most 4096"),
        ({"feed_forward_length": [96, 64]}, {}, UnsupportedError, r"feed_forward_length differs between layers"),
        ({"attention__layer_norm_rms_epsilon": None}, {}, CheckpointError, r"epsilon must be a number, not None"),
        ({"attention__layer_norm_rms_epsilon": float("inf")}, {}, CheckpointError, r"must be a number, not inf"),
        ({"general__quantization_version": 1}, {}, UnsupportedError, r"its blocks are of version 1"),
        ({"general__type": "adapter"}, {}, UnsupportedError, r"a part or companion of one \('adapter'\)"),
    ],
)  # fmt: skip
def test_settings_are_honoured_or_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], tensors: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        config_of(tmp_path, tensors=tensors, **changes)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("granite", {"logit_scale": 8.0, "rope__scaling__finetuned": False}, r"finetuned is False; it must be True"),
        ("olmo", {"attention__layer_norm_epsilon": 1e-6}, r"layer_norm_epsilon is .*; it must be 1e-05"),
        ("glm4", {"rope__dimension_sections": [8, 4, 4, 0]}, r"dimension_sections"),
        ("mistral3", {"attention__temperature_scale": 0.1}, r"is read with yarn only"),
        ("gemma3", {"attention__key_length_swa": 8}, r"key_length_swa is 8"),
        ("lama", {}, r"architecture 'lama' \(is 'llama' meant\?\); llama, qwen2"),
        ("mamba2", {}, r"architecture 'mamba2'.*are read"),
    ],
)
def test_what_an_architecture_refuses(tmp_path: Path, name: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        config_of(tmp_path, name, **changes)


def test_windows_by_a_number_or_layer_by_layer(tmp_path: Path) -> None:
    def kinds(**changes: Any) -> str:
        config = config_of(tmp_path, "gemma3", **changes)
        assert config["sliding_window"] == (changes.get("attention__sliding_window") or None)
        return "".join(kind[0] for kind in config["layer_types"])

    assert kinds() == "fffff"
    assert kinds(attention__sliding_window=8) == "sssss"
    assert kinds(attention__sliding_window=8, attention__sliding_window_pattern=2) == "sfsfs"
    assert (
        kinds(attention__sliding_window=8, attention__sliding_window_pattern=[True, False, False, True, True])
        == "sffss"
    )
    with pytest.raises(
        CheckpointError, match=r"sliding_window_pattern must be a number, or true or false for each of 5"
    ):
        kinds(attention__sliding_window=8, attention__sliding_window_pattern=[True])


def test_a_vectors_pooling_is_written_as_sentence_transformers_does(tmp_path: Path) -> None:
    vocabulary = {"tokenizer.ggml.model": "t5", "tokenizer.ggml.tokens": ["<pad>", "</s>", "<unk>", "▁a"]}
    vocabulary |= {"tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0], "tokenizer.ggml.token_type": [3, 3, 2, 1]}
    path = write(tmp_path / "x.gguf", "qwen3", LLAMA | {"pooling_type": 3}, EMBEDDING, **vocabulary)
    (tmp_path / "out").mkdir()
    GGUF(path).write_companions(tmp_path / "out")
    modes = json.loads((tmp_path / "out" / "1_Pooling" / "config.json").read_text())
    assert modes == {"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}
