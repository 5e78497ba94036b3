"""Checkpoint directories: whole, sharded, and wrong in the ways that downloads and hands make them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llmserve.compile.random_checkpoint import TINY_LLAMA, write_random_checkpoint
from llmserve.errors import CheckpointError
from llmserve.weights.read import INDEX, SINGLE, Checkpoint

CONFIG = TINY_LLAMA | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 300}


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_random_checkpoint(tmp_path / "sharded", CONFIG, shards=3, tokenizer=None)


def edit_index(path: Path, **weight_map: str) -> None:
    index = json.loads((path / INDEX).read_text())
    index["weight_map"] |= weight_map
    (path / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_reads_what_the_reference_reads(tmp_path: Path, dtype: Any) -> None:
    path = write_random_checkpoint(tmp_path, CONFIG, dtype=dtype, tokenizer=None)
    checkpoint, reference = Checkpoint.open(path), load_file(path / SINGLE)
    assert set(checkpoint.names()) == set(reference)
    for name, expected in reference.items():
        found = checkpoint.read(name)
        assert found.dtype.name == dtype == checkpoint.info(name).dtype.name
        assert found.shape == checkpoint.info(name).shape and found.nbytes == checkpoint.info(name).nbytes
        assert found.tobytes() == expected.tobytes()


def test_sharded_and_single_hold_the_same_bytes(tmp_path: Path, sharded: Path) -> None:
    assert len(list(sharded.glob("*.safetensors"))) == 3
    many = Checkpoint.open(sharded)
    one = Checkpoint.open(write_random_checkpoint(tmp_path / "one", CONFIG, tokenizer=None))
    assert set(many.names()) == set(one.names())
    assert all(many.read(name).tobytes() == one.read(name).tobytes() for name in one.names())


def test_rows_of_a_tensor(tmp_path: Path) -> None:
    cube, vector = np.arange(24, dtype=np.float32).reshape(2, 3, 4), np.arange(5, dtype=np.float16)
    save_file({"cube": cube, "vector": vector}, tmp_path / SINGLE)
    checkpoint = Checkpoint.open(tmp_path)
    np.testing.assert_array_equal(checkpoint.read_rows("cube", 2, 5), cube.reshape(6, 4)[2:5])
    np.testing.assert_array_equal(checkpoint.read_rows("vector", 1, 3), vector[1:3, None])
    with pytest.raises(IndexError):
        checkpoint.read_rows("vector", 0, 6)
    with pytest.raises(CheckpointError, match="no tensor nothing"):
        checkpoint.read("nothing")
    assert "cube" in checkpoint and "nothing" not in checkpoint


def test_a_missing_shard(sharded: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.safetensors is missing"):
        Checkpoint.open(sharded)


def test_a_truncated_shard(sharded: Path) -> None:
    shard = sharded / "model-00003-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="cut short"):
        Checkpoint.open(sharded)


def test_a_file_that_shrinks_after_opening(tmp_path: Path) -> None:
    save_file({"a": np.ones(1000, np.float32)}, tmp_path / SINGLE)
    checkpoint = Checkpoint.open(tmp_path)
    with (tmp_path / SINGLE).open("r+b") as file:
        file.truncate(500)
    with pytest.raises(CheckpointError, match="ended in the middle of a"):
        checkpoint.read("a")
    (tmp_path / SINGLE).unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read("a")


def test_an_index_that_promises_too_much(sharded: Path) -> None:
    edit_index(sharded, extra="model-00001-of-00003.safetensors")
    with pytest.raises(CheckpointError, match=r"places extra in model-00001.*does not hold it"):
        Checkpoint.open(sharded)


def test_an_index_that_names_the_wrong_shard(sharded: Path) -> None:
    edit_index(sharded, **{"model.embed_tokens.weight": "model-00003-of-00003.safetensors"})
    with pytest.raises(CheckpointError, match=r"places model\.embed_tokens\.weight in model-00003"):
        Checkpoint.open(sharded)


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    save_file({"model.norm.weight": np.ones(32, np.float32)}, sharded / "more.safetensors")
    edit_index(sharded, **{"model.norm.weight": "more.safetensors"})
    with pytest.raises(CheckpointError, match=r"holds model\.norm\.weight twice, in model-00003.* and more\.safet"):
        Checkpoint.open(sharded)


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..\\x.safetensors", "x.bin", "", ".."]
)
def test_an_index_that_leads_out_of_the_directory(sharded: Path, shard: str) -> None:
    edit_index(sharded, extra=shard)
    with pytest.raises(CheckpointError, match=r"which is not a \*\.safetensors file of that directory"):
        Checkpoint.open(sharded)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', "[" * 99_999])
def test_a_corrupt_index(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json is corrupt"):
        Checkpoint.open(tmp_path)


def test_directories_without_safetensors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has neither model\.safetensors nor"):
        Checkpoint.open(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match=r"pickled weights only.*save_pretrained"):
        Checkpoint.open(tmp_path)
    with pytest.raises(CheckpointError, match="is not a directory"):
        Checkpoint.open(tmp_path / "nowhere")


def test_bfloat16_comes_as_bfloat16(tmp_path: Path) -> None:
    path = write_random_checkpoint(tmp_path, CONFIG, tokenizer=None)
    assert Checkpoint.open(path).read("model.norm.weight").dtype == ml_dtypes.bfloat16
