"""Checkpoints of models that see: their text part under each spelling of its tensors' names, and of its config."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llmserve import LLM
from llmserve.compile.random_checkpoint import write_random_checkpoint
from llmserve.models.base import family, read_family

from ..skips import package

EYES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
GEMMA = {
    "model_type": "gemma3",
    "mm_tokens_per_image": 4,
    "vision_config": {**EYES, "model_type": "siglip_vision_model"},
}
MISTRAL = {"model_type": "mistral3", "vision_config": {**EYES, "model_type": "pixtral", "head_dim": 16}}


def new(name: str) -> str:
    return f"model.language_model.{name.removeprefix('model.')}" if name.startswith("model.") else name


def old(name: str) -> str:
    return f"language_model.{name}"


@pytest.mark.reference
@pytest.mark.parametrize(
    "wrapper, text, spelled", [(GEMMA, "gemma3_text", new), (GEMMA, "gemma3_text", old), (MISTRAL, "ministral3", old)]
)
def test_the_text_part_is_found_and_equals_transformers(wrapper, text, spelled, tmp_path):
    """The reference draws the vision part that the file lacks; ours finds tensors of one, and leaves them unread."""
    torch = package("torch", "torch as a reference")
    transformers = package("transformers", "transformers as a reference")
    path = write_random_checkpoint(tmp_path, dict(family(text).tiny), dtype="float32")
    own = json.loads((path / "config.json").read_text())
    raw = {**wrapper, "text_config": own, "tie_word_embeddings": own["tie_word_embeddings"]}
    (path / "config.json").write_text(json.dumps(raw))
    tensors = {spelled(name): value for name, value in load_file(path / "model.safetensors").items()}
    save_file(tensors, path / "model.safetensors")
    reference = transformers.AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    before = "model." if spelled is new else ""
    for name in ("vision_tower.patch_conv.weight", "multi_modal_projector.linear_1.weight"):
        tensors[before + name] = np.ones((4, 3), np.float32)
    save_file(tensors, path / "model.safetensors")
    ids = [int(i) for i in np.random.default_rng(0).integers(0, 500, 100)]
    kinds = {"token_type_ids": torch.zeros(1, 100, dtype=torch.long)} if wrapper is GEMMA else {}
    with torch.no_grad():
        expected = reference(input_ids=torch.tensor([ids]), **kinds).logits[0].numpy()
    found = LLM(path, quant="f32", kv_cache_memory="16MiB", max_num_seqs=16).logits(ids)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_text_config_may_leave_out_what_its_class_says():
    """As Gemma 3 4B's: heads, positions and bases of rotation are nowhere in the file."""
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    scaling = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    found, config = read_family({"model_type": "gemma3", "text_config": {**text, **scaling}, "vision_config": {}})
    assert found.name == "gemma3_text" and config.tie_word_embeddings
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (8, 4, 256)
    assert (config.vocab_size, config.max_position_embeddings) == (262208, 131072)
    assert [(rope.theta, rope.kind) for rope in config.rope] == [(1e6, "linear"), (1e4, "default")]
    assert [kind.window for kind in config.layers[:6]] == [1024] * 5 + [0]
