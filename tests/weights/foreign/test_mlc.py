"""MLC's weight directories, read and written; the reference is TVM's own reader and writer (tvm.contrib.tvmjs)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tvm.contrib import tvmjs

from llmserve import cli
from llmserve.compile.build import Build
from llmserve.compile.random_checkpoint import write_random_checkpoint
from llmserve.errors import CheckpointError, UnsupportedError
from llmserve.models.base import family as find
from llmserve.quant.group import INT3_X40, INT4, GroupFormat
from llmserve.weights.foreign import mlc_writer, open_source
from llmserve.weights.load import load_params

from .test_packed import stored_weights

FORMATS: dict[str, tuple[GroupFormat | None, Any]] = {
    "q4f16_1": (INT4, np.float16),
    "q4f32_1": (INT4, np.float32),
    "q3f16_1": (INT3_X40, np.float16),
    "q0f16": (None, np.float16),
    "q0f32": (None, np.float32),
}
FUSED = {"self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj"), "mlp.gate_up_proj": ("gate_proj", "up_proj")}


def packed(w: np.ndarray, fmt: GroupFormat, dtype: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(q_weight, q_scale, the weights that they stand for), as MLC's group quantization is defined, a value at a time:
    groups filled up with zero bits, scale max|w| / max_int, words of `per_word` values from the lowest bits on."""
    n, k = w.shape
    groups = -(-k // fmt.group_size)
    words, scales, out = np.zeros((n, fmt.words(k)), np.uint32), np.zeros((n, groups), dtype), np.zeros((n, k))
    for row in range(n):
        for g in range(groups):
            mine = w[row, g * fmt.group_size : (g + 1) * fmt.group_size].astype(np.float64)
            scales[row, g] = scale = np.float16(np.abs(mine).max() / fmt.max_int)
            for i, value in enumerate(np.clip(np.rint(mine / float(scale) + fmt.max_int), 0, 2 * fmt.max_int)):
                at = g * fmt.group_size + i
                words[row, at // fmt.per_word] |= np.uint32(int(value) << (at % fmt.per_word * fmt.bits))
                out[row, at] = (value - fmt.max_int) * float(scale)
    return words, scales, out


def write(out: Path, family: str, quantization: str, encoding: str = "raw") -> tuple[Path, dict[str, np.ndarray]]:
    """(an MLC directory written by TVM, its matrices as floats by our names)."""
    fmt, dtype = FORMATS[quantization]
    small = {"vocab_size": 300, "intermediate_size": 72, "hidden_size": 128, "head_dim": 16}
    config = dict(find(family).tiny) | small | {"use_sliding_window": False}
    checkpoint = write_random_checkpoint(out / "hf", config, dtype="float16")
    config = json.loads((checkpoint / "config.json").read_text())
    tensors = load_file(checkpoint / "model.safetensors")
    for i in range(config["num_hidden_layers"]):
        for fused, parts in FUSED.items():
            stem = f"model.layers.{i}.{fused.split('.')[0]}"
            for kind in ("weight", "bias"):
                if f"{stem}.{parts[0]}.{kind}" in tensors:
                    rows = [tensors.pop(f"{stem}.{part}.{kind}") for part in parts]
                    tensors[f"model.layers.{i}.{fused}.{kind}"] = np.concatenate(rows)
    params: dict[str, np.ndarray] = {}
    weights: dict[str, np.ndarray] = {}
    for name, w in tensors.items():
        own = name.replace("qkv_proj", "c_attn") if family.startswith("qwen") else name
        if w.ndim == 1 or fmt is None:
            params[own] = w.astype(dtype)
            weights[name.removesuffix(".weight")] = w
        else:
            stem = own.removesuffix(".weight")
            params[f"{stem}.q_weight"], params[f"{stem}.q_scale"], w = packed(w, fmt, dtype)
            weights[name.removesuffix(".weight")] = w
    made = out / "mlc"
    tvmjs.dump_tensor_cache(params, str(made), encode_format=encoding, shard_cap_mb=1, show_progress=False)
    keys = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads")
    model = {key: config[key] for key in (*keys, "rms_norm_eps", "vocab_size", "head_dim", "tie_word_embeddings")}
    model |= {"position_embedding_base": 10000, "context_window_size": 512, "kwargs": {"hidden_act": "silu"}}
    if family == "mistral":
        model |= {"sliding_window_size": 24, "context_window_size": -1, "attention_sink_size": 4}
    chat = {"model_type": family, "quantization": quantization, "model_config": model, "temperature": 0.7}
    chat |= {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (made / "mlc-chat-config.json").write_text(json.dumps(chat))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint / file, made / file)
    return made, weights


@pytest.mark.parametrize(
    ("family", "quantization"),
    [
        *(("llama", name) for name in FORMATS),
        *((family, "q4f16_1") for family in ("qwen2", "qwen3", "mistral")),
    ],
)
def test_a_directory_is_read_without_loss(tmp_path: Path, family: str, quantization: str) -> None:
    made, weights = write(tmp_path, family, quantization)
    quant = {"q0f16": "f16", "q0f32": "f32"}.get(quantization)
    build = Build(str(made), quant=quant)
    fmt, _ = FORMATS[quantization]
    assert build.scheme.storage == (fmt or build.scheme.storage) and not build.scheme.overrides
    found = stored_weights(build)
    assert found.keys() == {name for name in weights if weights[name].ndim == 2}
    for name, w in found.items():
        np.testing.assert_array_equal(w, weights[name])
    params = load_params(build.weights())
    for name in weights.keys() - found.keys():
        np.testing.assert_array_equal(params[name if name.endswith("bias") else f"{name}.weight"], weights[name])
    windows = tuple(kind.window for kind in build.config.layers)
    assert windows == ((24, 24) if family == "mistral" else (0, 0))
    assert build.config.max_position_embeddings == (32768 if family == "mistral" else 512)
    assert json.loads((build.weights() / "generation_config.json").read_text()) == {"temperature": 0.7}


@pytest.mark.parametrize("name", ["q4f16_1", "q4f32_1", "q3f16_1", "q0f16", "q0f32"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_there_and_back_bit_for_bit(tmp_path: Path, family: str, name: str) -> None:
    """MLC's directory → ours → MLC's: every tensor's bytes, those that fill up groups too."""
    made, _ = write(tmp_path, family, name)
    quant = {"q0f16": "f16", "q0f32": "f32"}.get(name, name)
    build = Build(str(made), quant=quant)
    build.export_mlc(tmp_path / "again")
    before, after = (tvmjs.load_tensor_cache(str(path), tvm_cpu())[0] for path in (made, tmp_path / "again"))
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        ours, theirs = after[key].numpy(), tensor.numpy()
        assert ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes(), key
    again = Build(str(tmp_path / "again"), quant=quant)
    assert again.config == build.config and again.raw_config["eos_token_id"] == build.raw_config["eos_token_id"]


def tvm_cpu() -> Any:
    import tvm

    return tvm.cpu()


def test_bfloat16_that_stands_for_float32(tmp_path: Path) -> None:
    """MLC's default writes the upper halves of float32 values."""
    made, weights = write(tmp_path, "llama", "q0f32", encoding="f32-to-bf16")
    expected = {k: v.numpy() for k, v in tvmjs.load_tensor_cache(str(made), tvm_cpu())[0].items()}
    source = open_source(made)
    for name in ("model.embed_tokens.weight", "model.norm.weight", "model.layers.1.mlp.down_proj.weight"):
        found = source.read_rows(name, 0, source.info(name).rows[0]).reshape(expected[name].shape)
        np.testing.assert_array_equal(found, expected[name])
        assert found.dtype == np.float32 and np.abs(found - weights[name.removesuffix(".weight")]).max() < 0.02


def test_the_older_name_of_the_cache(tmp_path: Path) -> None:
    made, _ = write(tmp_path, "llama", "q4f16_1")
    names = open_source(made).names()
    (made / "tensor-cache.json").rename(made / "ndarray-cache.json")
    assert open_source(made).names() == names and "model.layers.0.self_attn.k_proj.weight" in names


def test_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """By the command line, in several shards; TVM reads it, and the config names the model."""
    monkeypatch.setattr(mlc_writer, "SHARD_BYTES", 20_000)
    checkpoint = write_random_checkpoint(tmp_path / "hf", dict(find("llama").tiny), dtype="float16")
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["llmserve", "convert", str(checkpoint), "-o", str(out), "--format", "mlc"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code and "Written for MLC in q4f16_1" in capfd.readouterr().out
    tensors, metadata = tvmjs.load_tensor_cache(str(out), tvm_cpu())
    params = load_params(Build(str(checkpoint), quant="q4").weights())
    assert tensors.keys() == params.keys()
    for name, array in params.items():
        expected = array if array.dtype == np.uint32 else array.astype(np.float16)
        np.testing.assert_array_equal(tensors[name].numpy(), expected)
    cache = json.loads((out / "tensor-cache.json").read_text())
    assert len(cache["records"]) > 5 and metadata["ParamSize"] == len(params)
    assert metadata["ParamBytes"] == sum(file.stat().st_size for file in out.glob("params_shard_*.bin"))
    assert 4.4 < metadata["BitsPerParam"] < 4.7
    chat = json.loads((out / "mlc-chat-config.json").read_text())
    assert (chat["model_type"], chat["quantization"], chat["vocab_size"]) == ("llama", "q4f16_1", 512)
    assert chat["conv_template"]["name"] == "chatml" and "tokenizer.json" in chat["tokenizer_files"]
    assert chat["model_config"]["position_embedding_base"] == 10000.0 and (out / "tokenizer.json").exists()


@pytest.mark.parametrize(("quant", "words"), [("q8", "no weights in int8"), ("q3", "no weights in int3")])
def test_formats_that_mlc_has_not(tmp_path: Path, checkpoint: Callable[[str], Path], quant: str, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        Build(str(checkpoint("llama")), quant=quant).export_mlc(tmp_path / "out")
    with pytest.raises(UnsupportedError, match="several formats at once"):
        mlc_writer.quantization_name(INT4, False, True)
    assert not (tmp_path / "out").exists()


def edited(file: str, *path: Any, value: Any) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        content = place = json.loads((directory / file).read_text())
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        (directory / file).write_text(json.dumps(content))

    return edit


def shortened(directory: Path) -> None:
    file = directory / "params_shard_0.bin"
    file.write_bytes(file.read_bytes()[:-1])


CHAT, CACHE = "mlc-chat-config.json", "tensor-cache.json"
FIRST = ("records", 0, "records", 0)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (edited(CHAT, "quantization", value="q4f16_0"), r"'q4f16_0' are not read; q4f16_1"),
        (edited(CHAT, "model_type", value="rwkv"), r"type 'rwkv' are not read from MLC"),
        (edited(CHAT, "model_config", value=3), r"no `model_config`"),
        (edited(CHAT, "model_config", "hidden_size", value=1 << 40), r"hidden_size must be a positive number"),
        (edited(CHAT, "model_config", "head_dim", value="x"), r"head_dim must be a positive number"),
        (edited(CHAT, "model_config", "tensor_parallel_shards", value=2), r"for several devices"),
        (edited(CHAT, "model_config", "intermediate_size", value=96), r"144 rows, and 192 are needed"),
        (edited(CACHE, "records", value=3), r"no list of `records`"),
        (edited(CACHE, "records", 0, "dataPath", value="../x.bin"), r"names '../x.bin', which is no"),
        (edited(CACHE, "records", 0, "dataPath", value="pytorch_model.bin"), r"cannot be read"),
        (edited(CACHE, *FIRST, "byteOffset", value=1 << 50), r"beyond the end of params_shard_0"),
        (edited(CACHE, *FIRST, "shape", value=[1 << 30, 1 << 30]), r"bytes, which its shape"),
        (edited(CACHE, *FIRST, "dtype", value="int8"), r"is int8 as 'raw'"),
        (edited(CACHE, *FIRST, "shape", value=None), r"names no tensor"),
        (edited(CACHE, "records", 0, "records", 1, "name", value="model.norm.weight"), r"twice|has no tensor"),
        (shortened, r"a download cut short\?"),
        (lambda path: (path / "params_shard_0.bin").unlink(), r"cannot be read \(No such file"),
        (lambda path: (path / CACHE).write_text("{"), r"cannot be read as JSON"),
    ],
)
def test_directories_that_are_broken(
    tmp_path: Path, directory: Path, damage: Callable[[Path], None], words: str
) -> None:
    path = shutil.copytree(directory, tmp_path / "mlc")
    damage(path)
    with pytest.raises((CheckpointError, UnsupportedError), match=words) as caught:
        Build(str(path)).weights()
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("mlc"), "llama", "q4f16_1")[0]
