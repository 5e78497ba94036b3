"""Weights of which each matrix is stored in a way of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmserve import LLM, artifact
from llmserve.compile.build import Build
from llmserve.errors import ArtifactError, UnsupportedError
from llmserve.quant.group import INT3, INT8, GroupFormat, dequantize
from llmserve.quant.scheme import SCHEMES, Scheme, restored
from llmserve.weights.container import SafetensorsWriter, TensorSpec
from llmserve.weights.load import PARAMS_FILE, load_params
from llmserve.weights.read import SINGLE

from ..oracle import Oracle

OVERRIDES = {
    "model.layers.0.self_attn.qkv_proj": INT8,
    "model.layers.0.mlp.gate_up_proj": INT3,
    "model.layers.1.mlp.down_proj": "float16",
    "lm_head": INT8,
}


@pytest.fixture(scope="module")
def mixed(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted directory: 4 bits, but for OVERRIDES."""
    build = Build(str(checkpoint("llama")), quant="q4")
    build.scheme = replace(build.scheme, name="mixed", overrides=OVERRIDES)
    build.export_weights(out := tmp_path_factory.mktemp("converted") / "mixed")
    return out


def random_ids(seed: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, 512, 5)]


def test_four_storages_in_one_model_equal_the_oracle(mixed: Path) -> None:
    """As close as models of one storage (tests/test_families.py): most texts exactly, the rest off by a rounding."""
    build, llm = Build(str(mixed)), LLM(mixed, kv_cache_memory="16MiB")
    oracle = Oracle(build.config, mixed, build.scheme)
    errors = []
    for seed in range(12):
        expected = oracle.logits(random_ids(seed))
        errors.append(np.abs(llm.logits(random_ids(seed)) - expected).max() / np.abs(expected).max())
    assert np.quantile(errors, 0.25) <= 1e-4 and np.median(errors) <= 1e-2 and max(errors) <= 3e-2


def test_it_computes_what_its_dequantized_twin_does(
    mixed: Path, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """The twin is an unquantized checkpoint of the very weights that are stored, so that what is left between the two
    is the rounding of activations to int8: 1/254 of a group's largest value each, about 2 % of the largest logit."""
    build, params = Build(str(mixed)), load_params(mixed)
    weights: dict[str, np.ndarray] = {}
    for name, matrix in build.model.matrices():
        storage = build.scheme.storage_of(name)
        if isinstance(storage, GroupFormat):
            packed = params[f"{name}.q_weight"], params[f"{name}.q_scale"]
            weights[name] = dequantize(*packed, storage, matrix.in_features)
        else:
            weights[name] = params[f"{name}.weight"].astype(np.float32)
    for name, _ in build.model.floats():
        weights[name.removesuffix(".weight")] = params[name]
    for i in range(build.config.num_layers):
        layer = f"model.layers.{i}"
        fused = weights.pop(f"{layer}.self_attn.qkv_proj")
        kv = build.config.num_kv_heads * build.config.head_dim
        q, k, v = np.split(fused, [len(fused) - 2 * kv, len(fused) - kv])
        weights |= {f"{layer}.self_attn.{part}_proj": w for part, w in (("q", q), ("k", k), ("v", v))}
        gate, up = np.split(weights.pop(f"{layer}.mlp.gate_up_proj"), 2)
        weights |= {f"{layer}.mlp.gate_proj": gate, f"{layer}.mlp.up_proj": up}
    twin = tmp_path / "twin"
    twin.mkdir()
    for file in checkpoint("llama").glob("*.json"):
        (twin / file.name).write_bytes(file.read_bytes())
    specs = [TensorSpec(f"{name}.weight", w.dtype, w.shape) for name, w in weights.items()]
    with SafetensorsWriter(twin / SINGLE, specs) as writer:
        for name, w in weights.items():
            writer.write(f"{name}.weight", w)
    ours, theirs = LLM(mixed, kv_cache_memory="16MiB"), LLM(twin, quant="f32", kv_cache_memory="16MiB")
    for seed in range(4):
        expected = theirs.logits(random_ids(seed))
        assert np.abs(ours.logits(random_ids(seed)) - expected).max() <= 4e-2 * np.abs(expected).max()


def test_the_directory_says_how_each_matrix_is_stored(mixed: Path, tmp_path: Path) -> None:
    names = {name: storage if isinstance(storage, str) else storage.name for name, storage in OVERRIDES.items()}
    causes = artifact.causes_of(mixed, "weights")
    assert (causes["scheme"], causes["storage"], causes["overrides"]) == ("mixed", "int4", names)
    with (mixed / PARAMS_FILE).open("rb") as file:
        metadata = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    assert metadata["storage"] == "int4" and json.loads(metadata["overrides"]) == names
    build = Build(str(mixed))
    assert build.scheme.overrides == OVERRIDES and build.scheme.name == "mixed"
    with pytest.raises(UnsupportedError, match="holds mixed weights, which cannot become int4"):
        Build(str(mixed), quant="q4")
    with pytest.raises(UnsupportedError, match="is a converted directory already, in mixed"):
        build.export_weights(tmp_path / "again")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"overrides": {"lm_head": "int5"}}, "'int5' are unknown to this version"),
        ({"storage": "bfloat16"}, "'bfloat16' are unknown to this version"),
        ({"overrides": {"lm_tail": "int8"}}, "store lm_tail in a way of its own, and the model has none"),
    ],
)
def test_a_manifest_that_fits_no_model(mixed: Path, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    for file in mixed.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((mixed / artifact.MANIFEST).read_text("utf-8"))
    manifest["causes"] |= change
    (tmp_path / artifact.MANIFEST).write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(ArtifactError, match=words):
        _ = Build(str(tmp_path)).model


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_schemes_are_restored_for_the_platform_at_hand(scheme: Scheme) -> None:
    own = restored(json.loads(json.dumps(scheme.stored)), "float32")
    assert own.storage == scheme.storage and own.compute_dtype == "float32" and not own.overrides
