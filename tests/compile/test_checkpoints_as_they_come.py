"""Checkpoints whose names or settings are not what config.json suggests: heads, prefixes, parts that are not text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llmserve.compile.build import Build
from llmserve.errors import CheckpointError
from llmserve.models.config import read_config
from llmserve.weights.load import load_params
from llmserve.weights.read import SINGLE
from llmserve.weights.source import write_json

Tensors = dict[str, np.ndarray]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def changed(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[..., Build]:
    """A build of the tiny Llama with other tensors and settings."""

    def make(change: Callable[[Tensors], Tensors], **settings: object) -> Build:
        source = checkpoint("llama")
        write_json(tmp_path / "config.json", read_config(source) | settings)
        save_file(change(load_file(source / SINGLE)), tmp_path / SINGLE)
        return Build(str(tmp_path), quant="f32")

    return make


def stored(build: Build) -> Tensors:
    return load_params(build.weights())


def test_a_head_that_is_missing_is_the_embedding(changed: Callable[..., Build]) -> None:
    build = changed(lambda t: {name: w for name, w in t.items() if name != HEAD})
    assert build.config.tie_word_embeddings and HEAD not in stored(build)
    assert any("no lm_head.weight" in note for note in build.notes)


def test_a_head_of_its_own_is_used_whatever_the_config_says(changed: Callable[..., Build]) -> None:
    build = changed(lambda t: t, tie_word_embeddings=True)
    assert not build.config.tie_word_embeddings and HEAD in stored(build)
    assert any("differs from the embedding" in note for note in build.notes)


def test_a_head_that_is_the_embedding_is_stored_once(changed: Callable[..., Build]) -> None:
    build = changed(lambda t: t | {HEAD: t[EMBEDDING]}, tie_word_embeddings=True)
    assert build.config.tie_word_embeddings and HEAD not in stored(build)


@pytest.mark.parametrize("prefix", ["", "model.language_model.", "language_model.model."])
def test_names_of_text_models_inside_others_and_without_a_prefix(changed: Callable[..., Build], prefix: str) -> None:
    """The same weights, whatever they are called; what sees is left unread, and that is said."""
    seen: Tensors = {}

    def renamed(tensors: Tensors) -> Tensors:
        seen.update(tensors)
        names = {name: prefix + name.removeprefix("model.") for name in tensors if name != HEAD}
        head = "language_model.lm_head.weight" if prefix.startswith("language_model") else HEAD
        vision = {"vision_tower.patch.weight": np.zeros((2, 2), np.float32)} if prefix else {}
        return {names.get(name, head): w for name, w in tensors.items()} | vision

    build = changed(renamed)
    params = stored(build)
    np.testing.assert_array_equal(params[EMBEDDING], seen[EMBEDDING])
    np.testing.assert_array_equal(params[HEAD], seen[HEAD])
    np.testing.assert_array_equal(params["model.norm.weight"], seen["model.norm.weight"])
    assert any("vision_tower" in note for note in build.notes) == bool(prefix)


def test_a_tensor_without_a_place_is_refused_by_name(changed: Callable[..., Build]) -> None:
    build = changed(lambda t: t | {"model.layers.0.mlp.router.weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(CheckpointError, match=r"mlp\.router"):
        build.weights()
