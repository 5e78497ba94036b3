"""The GGUF file that the comparison with llama.cpp runs on: complete, and holding the weights that went in."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from llmserve.compile.random_checkpoint import TINY_LLAMA, write_random_checkpoint
from llmserve.errors import UnsupportedError
from llmserve.quant.group import as_float32
from llmserve.weights.read import Checkpoint

from ..skips import package

gguf = package("gguf", "GGUF files in benchmarks")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "tied-llama3"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    from gguf_q4 import write

    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 128
    more = {"tie_word_embeddings": True, "rope_scaling": scaling} if request.param else {}
    out = tmp_path_factory.mktemp("gguf")
    write_random_checkpoint(out / "hf", {**TINY_LLAMA, "num_hidden_layers": 2, **more}, dtype="float32")
    write(out / "hf", out / "model.gguf")
    return out / "hf", out / "model.gguf"


def test_every_tensor_is_there_with_its_values(files: tuple[Path, Path]) -> None:
    checkpoint, file = files
    source = Checkpoint.open(checkpoint)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    tied = json.loads((checkpoint / "config.json").read_text())["tie_word_embeddings"]
    assert len(tensors) == len(source.names()) + tied  # one for the frequencies, and no head of its own
    assert ("output.weight" in tensors, "rope_freqs.weight" in tensors) == (not tied, tied)
    for ours, theirs in (
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight"),
    ):
        tensor, weight = tensors[theirs], as_float32(source.read(ours))
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        # A step of Q4_0 is the group's largest weight / 8, and its other end may lose a whole one.
        step = np.abs(weight.reshape(-1, 32)).max(-1).repeat(32).reshape(weight.shape) / 8
        assert (np.abs(found - weight) <= 1.01 * step).all()


def test_queries_and_keys_rotate_neighbours(files: tuple[Path, Path]) -> None:
    checkpoint, file = files
    weight = as_float32(Checkpoint.open(checkpoint).read("model.layers.0.self_attn.k_proj.weight"))
    tensor = next(t for t in gguf.GGUFReader(file).tensors if t.name == "blk.0.attn_k.weight")
    found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    half = TINY_LLAMA["head_dim"] // 2
    # Head 1's rows 3 and 3 + D/2 have become its rows 6 and 7.
    first = TINY_LLAMA["head_dim"]
    for here, there in ((first + 3, first + 6), (first + 3 + half, first + 7)):
        assert np.corrcoef(weight[here], found[there])[0, 1] > 0.99


def test_another_family_is_refused(tmp_path: Path) -> None:
    from gguf_q4 import write

    (tmp_path / "config.json").write_text('{"model_type": "gemma3"}')
    with pytest.raises(UnsupportedError, match="gemma3"):
        write(tmp_path, tmp_path / "model.gguf")
