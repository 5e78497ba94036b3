"""The arithmetic of `fit` against what conversions write and engines allocate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmserve import fit
from llmserve.compile.build import Build
from llmserve.config import parse_memory
from llmserve.errors import CheckpointError, ConfigError, UnsupportedError
from llmserve.models.base import families, family, read_family
from llmserve.models.layers import PageFormat
from llmserve.quant.scheme import choose
from llmserve.weights import hub
from llmserve.weights.container import read_header
from llmserve.weights.load import PARAMS_FILE

GIB = 1 << 30
# Llama-3.2-1B's config.json, as far as it tells.
LLAMA_1B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
}


def stored(directory: Path) -> int:
    return sum(info.nbytes for info in read_header(directory / PARAMS_FILE).values())


@pytest.mark.parametrize("quant", fit.QUANTS)
def test_weights_are_what_a_conversion_writes(quant: str) -> None:
    build = Build(None, quant=quant, device="cpu")
    row = next(row for row in fit.fit(None, "cpu", 8 * GIB).rows if row.quant == quant)
    assert row.weights == stored(build.weights())
    assert row.scheme == build.scheme.name


@pytest.mark.parametrize("name", families())
def test_in_every_family(name: str, checkpoint: Callable[[str], Path]) -> None:
    """Biases, norms of queries and keys, heads of their own: the families have them between them."""
    directory = checkpoint(name)
    row = next(row for row in fit.fit(str(directory), "cpu", 8 * GIB).rows if row.quant == "q4")
    assert row.weights == stored(Build(str(directory), quant="q4", device="cpu").weights())


def test_keys_and_values_are_what_an_engine_allocates() -> None:
    compiled = Build(None, device="cpu").run()
    row = next(row for row in fit.fit(None, "cpu", 8 * GIB).rows if row.quant == "q4")
    assert row.kv_per_token * compiled.interface.page_size == compiled.page_bytes


def test_a_model_that_is_known(tmp_path: Path) -> None:
    """1 235 814 400 weights and norms (as the model's card has it: 1.24 B); 32 KiB of keys and values a token."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_1B), encoding="utf-8")
    found = fit.fit(str(tmp_path), "cpu", 4 * GIB)
    rows = {row.quant: row for row in found.rows}
    norms = 33 * 2048
    assert rows["none"].weights == 4 * 1_235_814_400
    assert rows["q4"].weights == (1_235_814_400 - norms) * 9 // 16 + 4 * norms
    assert rows["q8"].weights - rows["q4"].weights == (1_235_814_400 - norms) // 2
    assert rows["q4"].kv_per_token == 16 * 2 * 8 * 64 * 2 == 32 << 10
    left = 4 * GIB - found.reserved - rows["q4"].weights
    assert rows["q4"].context == left // (32 << 10) // 16 * 16 < 131072
    assert rows["q4"].sequences == rows["q4"].context // 8192
    assert (rows["none"].context, rows["none"].sequences) == (0, 0)
    assert found.command == (
        f"llmserve serve {tmp_path} --quant q4 --device cpu --max-model-len 8192 "
        f"--kv-cache-memory {rows['q4'].sequences * 256}MiB"
    )
    assert fit.fit(str(tmp_path), "cpu", 900 << 20).command is None
    assert "--quant q3" in str(fit.fit(str(tmp_path), "cpu", rows["q3"].weights + found.reserved + GIB // 4).command)


def test_the_command_is_one_that_serve_takes() -> None:
    """Its memory holds a sequence of its length, which the engine insists on."""
    found = fit.fit(None, "cpu", 8 * GIB)
    row = next(row for row in found.rows if row.quant == "q4")
    words = str(found.command).split()
    length, memory = (words[words.index(flag) + 1] for flag in ("--max-model-len", "--kv-cache-memory"))
    assert int(parse_memory(memory) or 0) >= int(length) * row.kv_per_token
    assert int(length) <= found.positions == 1024


def test_a_gpu_computes_in_float16() -> None:
    """Unquantized weights are half as large there, and 4-bit ones the same."""
    cpu, gpu = (fit.fit(None, device, GIB) for device in ("cpu", "cuda"))
    assert gpu.rows[3].scheme == "f16" and cpu.rows[3].scheme == "f32"
    assert gpu.rows[1].weights == cpu.rows[1].weights and gpu.rows[3].weights < cpu.rows[3].weights


def test_memory_that_is_not_known() -> None:
    if fit.detect.devices("metal"):
        pytest.skip("it is known here")
    with pytest.raises(UnsupportedError, match="--memory"):
        fit.fit(None, "metal")


def test_a_model_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**LLAMA_1B, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    monkeypatch.setattr(hub, "config_only", lambda model: (config, 5 * GIB))
    monkeypatch.setattr(hub, "resolve", lambda *args: pytest.fail("downloaded"))
    found = fit.fit("org/model", "cpu", 4 * GIB)
    assert found.download == 5 * GIB and "Not downloaded yet: 5.0 GiB." in fit.describe(found)
    assert json.loads(json.dumps(fit.report(found)))["rows"][1]["quant"] == "q4"


def test_a_scheme_with_overrides() -> None:
    """Each matrix is counted in its own format."""
    found, config = read_family(dict(family("llama").tiny))
    model = found.model(config, PageFormat())
    name, matrix = next(iter(model.matrices()))
    q4, q8 = choose("q4", "float32"), choose("q8", "float32")
    mixed = type(q4)("mixed", q4.storage, "float32", {name: q8.storage})
    difference = fit.weight_bytes(model, mixed) - fit.weight_bytes(model, q4)
    assert difference == matrix.out_features * matrix.in_features // 2


@pytest.mark.parametrize("words", ["much", "0", "-5GiB"])
def test_memory_that_is_none(words: str) -> None:
    with pytest.raises(ConfigError, match="size"):
        parse_memory(words)


def test_what_is_not_there() -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        fit.fit("./nowhere", "cpu", GIB)


def test_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: Any = fit.describe(fit.fit(None, "cpu", 5))
    assert "It does not fit in 4 bits, nor in 3" in said and said.count(" - ") >= 4
