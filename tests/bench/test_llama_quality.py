"""llama.cpp as the comparison uses it: both engines compute the same model, and bytes and importance arrive."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from llmserve import LLM
from llmserve.compile import judging
from llmserve.compile.build import Build
from llmserve.compile.random_checkpoint import TINY_LLAMA, write_random_checkpoint

from ..skips import package

BENCH_EXTRA = "pip install 'llmserve[bench]'"
gguf = package("gguf", "the comparison with llama.cpp", BENCH_EXTRA)
package("llama_cpp", "the comparison with llama.cpp", BENCH_EXTRA)
sys.path.insert(0, str(Path(__file__).parents[2]))

CONFIG = TINY_LLAMA | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    from benchmarks import gguf_q4

    out = tmp_path_factory.mktemp("gguf")
    write_random_checkpoint(out / "hf", CONFIG, dtype="float16")
    gguf_q4.write(out / "hf", out / "f16.gguf", gguf.GGMLQuantizationType.F16)
    return out / "hf", out / "f16.gguf"


def test_both_compute_the_same_model(files: tuple[Path, Path]) -> None:
    """llama.cpp rounds activations and keys to float16, 2**-11 each: over two layers within 1 % of a large logit."""
    from benchmarks import llama_quality

    ids = [int(i) for i in np.random.default_rng(0).integers(0, 1000, 40)]
    with llama_quality.loaded(files[1], 64, 1) as model:
        found = model.logits(ids)
    expected = LLM(files[0], quant="f32", kv_cache_memory="16MiB").logits(ids)
    assert np.abs(found - expected).max() <= 1e-2 * np.abs(expected).max()
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.95


def test_importance_changes_the_rounding_and_not_the_size(files: tuple[Path, Path], tmp_path: Path) -> None:
    from benchmarks import llama_quality
    from benchmarks.quality import importance

    subject = Build(str(files[0]), quant="q4").subject
    weights = importance(subject, judging.chosen_sequences(subject)[:2])
    names = {tensor.name for tensor in gguf.GGUFReader(files[1]).tensors}
    assert len(weights) == 14 and weights.keys() < names
    assert all((values > 0).all() and len(values) in (256, 128, 512) for values in weights.values())
    made = {}
    for name, matrix in (("plain", None), ("imatrix", weights)):
        llama_quality.quantize(files[1], tmp_path / name, "Q4_K_M", 1, matrix)
        made[name] = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / name).tensors}
    assert llama_quality.tensor_bytes(tmp_path / "plain") == llama_quality.tensor_bytes(tmp_path / "imatrix")
    assert llama_quality.kinds_of(tmp_path / "plain")["Q4_K"] > 5
    changed = {name for name in names if not np.array_equal(made["plain"][name].data, made["imatrix"][name].data)}
    assert weights.keys() <= changed and "token_embd.weight" not in changed
