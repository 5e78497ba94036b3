"""GGUF files written by ggml's own Python package, which is also what says what their blocks mean. Architectures, their
settings, vocabularies and models in several parts have files of their own beside this."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from llmserve.compile.build import Build
from llmserve.compile.random_checkpoint import write_random_checkpoint
from llmserve.errors import CheckpointError, LLMServeError, UnsupportedError
from llmserve.models.base import family as find
from llmserve.quant.group import INT4, INT8, dequantize
from llmserve.text.tokenizer import Tokenizer
from llmserve.weights.foreign import open_source
from llmserve.weights.foreign.gguf.blocks import TYPES
from llmserve.weights.foreign.gguf.file import GGUFFile

from ...skips import package
from . import packing
from .test_packed import fused, stored_weights

gguf = package("gguf", "GGUF files")
Type = gguf.GGMLQuantizationType

LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
PLAIN = {"use_sliding_window": False}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 128}
TEMPLATE = "{% for m in messages %}{{ bos_token }}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"


def write(out: Path, family: str = "llama", kind: str = "F32", keys: dict[str, Any] | None = None) -> tuple[Path, Path]:
    """(a GGUF file whose matrices are of `kind`, a float32 checkpoint of the very weights that it holds)."""
    config = dict(find(family).tiny) | PLAIN | (keys or {})
    config["sliding_window"] = None  # absent would be the class default of some families
    twin = write_random_checkpoint(out / "twin", config, dtype="float32")
    config = json.loads((twin / "config.json").read_text())
    tensors = load_file(twin / "model.safetensors")
    writer = gguf.GGUFWriter(out / "model.gguf", "llama" if family == "mistral" else family)
    writer.add_name("tiny")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(config, scaling))
    elif scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling["rope_type"]))
        writer.add_rope_scaling_factor(scaling["factor"])
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    add_vocabulary(writer, twin, config)
    for name, w in tensors.items():
        if w.ndim == 2 and kind != "F32":
            packed = gguf.quants.quantize(w, Type[kind])
            tensors[name] = w = gguf.quants.dequantize(packed, Type[kind])
        heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
        own = w
        if family in ("llama", "mistral") and (part := name.split(".")[-2]) in heads:
            own = neighbours(w, heads[part])
        if w.ndim == 2 and kind != "F32":
            writer.add_tensor(renamed(name), gguf.quants.quantize(own, Type[kind]), raw_dtype=Type[kind])
        else:
            writer.add_tensor(renamed(name), own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    packing.save(tensors, twin / "model.safetensors")
    return out / "model.gguf", twin


def renamed(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in TOP:
        return f"{TOP[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{LAYER[part]}.{kind}"


def neighbours(w: np.ndarray, heads: int) -> np.ndarray:
    """Each head's rows i and i + D/2 next to each other."""
    dim = len(w) // heads
    rows = [h * dim + i + side * dim // 2 for h in range(heads) for i in range(dim // 2) for side in (0, 1)]
    return w[rows]


def llama3_divisors(config: dict[str, Any], scaling: dict[str, Any]) -> np.ndarray:
    """As in Llama 3.1's own code, one frequency at a time."""
    dim = config["hidden_size"] // config["num_attention_heads"]
    found = []
    for i in range(0, dim, 2):
        wavelength = 2 * np.pi * config["rope_theta"] ** (i / dim)
        ratio = scaling["original_max_position_embeddings"] / wavelength
        if ratio > scaling["high_freq_factor"]:
            found.append(1.0)
        elif ratio < scaling["low_freq_factor"]:
            found.append(scaling["factor"])
        else:
            smooth = (ratio - scaling["low_freq_factor"]) / (scaling["high_freq_factor"] - scaling["low_freq_factor"])
            found.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(found, np.float32)


def add_vocabulary(writer: Any, checkpoint: Path, config: dict[str, Any]) -> None:
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text("utf-8"))
    tokens, types = [""] * config["vocab_size"], [gguf.TokenType.UNUSED] * config["vocab_size"]
    for token, i in tokenizer["model"]["vocab"].items():
        tokens[i], types[i] = token, gguf.TokenType.NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    turn_end, end = config["eos_token_id"]
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(end)
    writer.add_eot_token_id(turn_end)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


# --- blocks


def random_blocks(kind: Any, count: int) -> bytes:
    """Blocks of any bits, but for float16 fields, which are numbers."""
    rng = np.random.default_rng(kind.nbytes)
    blocks = np.frombuffer(rng.bytes(count * kind.nbytes), kind.dtype).copy()
    for field in ("d", "m", "dmin", "w"):
        if field in (kind.dtype.names or ()):
            blocks[field] = rng.standard_normal(blocks[field].shape).astype(blocks[field].dtype)
    return blocks.tobytes()


@pytest.mark.parametrize("code", TYPES, ids=[kind.name for kind in TYPES.values()])
def test_blocks_mean_what_ggml_says(code: int) -> None:
    kind, reference = TYPES[code], Type(code)
    assert (kind.name, (kind.values, kind.nbytes)) == (reference.name, gguf.GGML_QUANT_SIZES[reference])
    data = random_blocks(kind, 200)
    expected = gguf.quants.dequantize(np.frombuffer(data, np.uint8).reshape(4, -1), reference)
    np.testing.assert_array_equal(kind.read(data, 4), expected)


@pytest.mark.parametrize("name", ["Q4_0", "Q5_0", "Q8_0"])
def test_grids_are_taken_over(name: str) -> None:
    kind = TYPES[Type[name].value]
    data = random_blocks(kind, 400)
    expected = kind.read(data, 4)
    grid = kind.read_grid(data, 4)
    np.testing.assert_array_equal(grid.dequantize(), expected)
    for fmt in {kind.suits, INT8}:
        assert fmt is not None
        np.testing.assert_array_equal(dequantize(*grid.store(fmt), fmt, expected.shape[1]), expected)


# --- whole files


@pytest.mark.parametrize(
    ("family", "keys"),
    [
        ("llama", {}),
        ("llama", {"rope_scaling": LLAMA3, "tie_word_embeddings": True}),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}}),
        ("mistral", {}),
        ("qwen2", {}),
        ("qwen3", {}),
    ],
)
def test_a_file_is_the_checkpoint_that_it_was_made_of(tmp_path: Path, family: str, keys: dict[str, Any]) -> None:
    file, twin = write(tmp_path, family, keys=keys)
    source, tensors = open_source(file), load_file(twin / "model.safetensors")
    assert sorted(source.names()) == sorted(tensors)
    for name, w in tensors.items():
        assert source.info(name).shape == w.shape
        np.testing.assert_array_equal(source.read_rows(name, 0, len(w)).reshape(w.shape), w)
        np.testing.assert_array_equal(source.read_rows(name, 7, 30).reshape(23, -1), w[7:30].reshape(23, -1))
    ours, theirs = Build(str(file), quant="none"), Build(str(twin), quant="none")
    assert ours.config.rope == theirs.config.rope
    same = ("hidden_size", "num_layers", "num_kv_heads", "head_dim", "norm_eps", "tie_word_embeddings", "qk_norm")
    for key in (*same, "vocab_size", "layers", "qkv_bias", "max_position_embeddings"):
        assert getattr(ours.config, key) == getattr(theirs.config, key), key
    assert ours.label == "model"


@pytest.mark.parametrize(("kind", "storage"), [("Q4_0", INT4), ("Q8_0", INT8), ("Q5_0", INT8)])
def test_a_quantized_file_is_converted_without_loss(tmp_path: Path, kind: str, storage: Any) -> None:
    file, twin = write(tmp_path, "llama", kind)
    build = Build(str(file))
    assert build.scheme.storage is storage and not build.scheme.overrides
    for name, w in stored_weights(build).items():
        np.testing.assert_array_equal(w, fused(twin, name))
    assert "10 of 10 matrices taken over as they were quantized" in build.notes[0]


def test_floats_are_quantized_as_a_checkpoint_of_floats_is(tmp_path: Path) -> None:
    """To the default, and for halves of them to what is asked."""
    file, twin = write(tmp_path, "llama", "F16")
    ours, theirs = stored_weights(Build(str(file))), stored_weights(Build(str(twin)))
    for name, w in theirs.items():
        np.testing.assert_array_equal(ours[name], w)


def test_what_is_no_grid_is_rounded_and_said(tmp_path: Path) -> None:
    """Q4_1 in 4 bits, Q5_1 in 8: to the nearest point of the new grid."""
    for kind, storage in (("Q4_1", INT4), ("Q5_1", INT8)):
        (tmp_path / kind).mkdir()
        file, twin = write(tmp_path / kind, "llama", kind)
        build = Build(str(file))
        for name, w in stored_weights(build).items():
            expected = fused(twin, name)
            groups = np.abs(expected).reshape(len(w), -1, 32).max(2) / storage.max_int
            assert (np.abs(w - expected) <= np.repeat(groups, 32, 1) * 0.51).all()
        assert f"10 matrices stored as {storage.name} because {kind} is no grid" in build.notes[0]
        assert Build(str(file), quant="q8").scheme.storage is INT8


def test_a_directory_with_one_file(tmp_path: Path) -> None:
    file, twin = write(tmp_path)
    shutil.rmtree(twin)
    assert open_source(tmp_path).path == file
    (tmp_path / "other.gguf").write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match="holds 2 GGUF files; name one"):
        open_source(tmp_path)


# --- vocabulary


def test_the_vocabulary_is_the_checkpoints(tmp_path: Path) -> None:
    file, twin = write(tmp_path)
    directory = Build(str(file)).weights()
    ours, theirs = Tokenizer.from_directory(directory), Tokenizer.from_directory(twin)
    samples = ["Hello, world! 12345", "  spaces\n\n\tand\r\nlines ", "naïve Größe 你好 😀", "don't I'LL <|im_end|> x"]
    for text in samples:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
    assert ours.eos_token_ids == theirs.eos_token_ids and ours.bos_token_id == theirs.bos_token_id
    assert ours.special_ids == theirs.special_ids
    assert json.loads((directory / "tokenizer_config.json").read_text("utf-8"))["chat_template"] == TEMPLATE


# --- files that are not to be trusted


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file of two tensors."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list(["a", "b"])
    writer.add_token_scores([0.5, 1.5])
    writer.add_tensor("w", gguf.quants.quantize(np.ones((4, 64), np.float32), Type.Q4_0), raw_dtype=Type.Q4_0)
    writer.add_tensor("v", np.arange(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_a_small_file(tmp_path: Path, small: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(small)
    file = GGUFFile.open(tmp_path / "x.gguf")
    assert file.metadata["tokenizer.ggml.tokens"] == ["a", "b"] and file.metadata["tokenizer.ggml.scores"] == [0.5, 1.5]
    assert file.tensors["w"].shape == (4, 64) and file.tensors["v"].shape == (8,)


def test_a_file_cut_anywhere(tmp_path: Path, small: bytes) -> None:
    for length in range(len(small) - 32):  # what follows may be padding
        (tmp_path / "x.gguf").write_bytes(small[:length])
        with pytest.raises(CheckpointError, match=r"x\.gguf is no intact GGUF file: .*\.$"):
            GGUFFile.open(tmp_path / "x.gguf")


def test_bytes_that_were_changed_are_an_error_or_harmless(tmp_path: Path, small: bytes) -> None:
    rng = np.random.default_rng(0)
    for _ in range(1500):
        broken = bytearray(small)
        at = int(rng.integers(0, len(small) - 200))
        broken[at : at + 4] = rng.bytes(4) if rng.random() < 0.7 else b"\xff" * 4
        (tmp_path / "x.gguf").write_bytes(broken)
        try:
            file = GGUFFile.open(tmp_path / "x.gguf")
            for tensor in file.tensors.values():
                file.read(tensor, 0, tensor.rows)
        except LLMServeError as error:
            assert "x.gguf" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("at", "number", "words"),
    [
        (8, 1 << 60, r"entries are promised"),  # tensors
        (16, 1 << 62, r"entries are promised"),  # metadata
        (24, 1 << 63, r"entries are promised"),  # the length of a key
    ],
)
def test_numbers_that_promise_the_moon(tmp_path: Path, small: bytes, at: int, number: int, words: str) -> None:
    (tmp_path / "x.gguf").write_bytes(small[:at] + struct.pack("<Q", number) + small[at + 8 :])
    with pytest.raises(CheckpointError, match=words):
        GGUFFile.open(tmp_path / "x.gguf")


def test_other_versions_and_byte_orders(tmp_path: Path, small: bytes) -> None:
    for version, words in ((b"\1\0\0\0", "in version 1"), (b"\0\0\0\3", "with big-endian numbers")):
        (tmp_path / "x.gguf").write_bytes(small[:4] + version + small[8:])
        with pytest.raises(UnsupportedError, match=words):
            GGUFFile.open(tmp_path / "x.gguf")
    (tmp_path / "x.gguf").write_bytes(b"PK\3\4" + small)
    with pytest.raises(CheckpointError, match="does not begin with GGUF"):
        GGUFFile.open(tmp_path / "x.gguf")


def test_a_file_without_an_embedding(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    for name in ("context_length", "block_count", "feed_forward_length", "embedding_length"):
        getattr(writer, f"add_{name}")(64)
    writer.add_head_count(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"has no matrix token_embd.weight"):
        open_source(tmp_path / "x.gguf")
