"""Calibration from end to end: every family, every way to stop it, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llmserve import LLM, artifact
from llmserve.compile import calibrate, calibration_data, judging, quality
from llmserve.compile.build import Build
from llmserve.errors import CheckpointError, ConfigError, UnsupportedError
from llmserve.quant import awq
from llmserve.weights.container import SafetensorsWriter, TensorSpec
from llmserve.weights.load import PARAMS_FILE
from llmserve.weights.read import SINGLE, Checkpoint

from ..oracle import Oracle
from ..representatives import by_registry

Make = Callable[[str], Path]


def few(monkeypatch: pytest.MonkeyPatch, tokens: int = 2048) -> None:
    monkeypatch.setattr(calibration_data, "TOKENS", tokens)


@pytest.mark.parametrize("family", by_registry())
def test_layers_by_themselves_are_the_model(family: str, checkpoint: Make) -> None:
    """What comes before the first layer, layer after layer, the last norm, the head and what follows it give the logits
    of the engine, which runs the same kernels on the same float32 weights and pages, in sequences longer than windows;
    the head is numpy's product here, so float32 sums come in another order. What a layer says can be folded leaves its
    output what it was, up to float32's rounding of its weights."""
    directory = checkpoint(family)
    build = Build(str(directory), quant="f32")
    weights = quality.UnquantizedWeights(build.subject.source, build.subject.plan(build.scheme))
    llm = LLM(directory, quant="f32", kv_cache_memory="16MiB", max_num_seqs=16)
    ids = np.random.default_rng(0).integers(0, 500, (2, 60))
    rng = np.random.default_rng(1)
    with judging.layerwise_model(build.subject, 60) as layerwise:
        states = quality.embed(weights, layerwise, ids)
        for i, program in layerwise.layers():
            own = layerwise.set_layer(i, weights)
            inputs = program.inputs(states, 60)
            assert [x.shape[1] for x in inputs] == [m.in_features for m in program.matrices().values()]
            before, states = states, program.output(states, 60)
            for fold in program.folds():
                awq.apply(
                    fold, np.exp(rng.standard_normal(int(fold.rows.max()) + 1)).astype(np.float32)[fold.rows], own
                )
            program.set_weights(own, {name: weights.tensor(name) for name in program.outer_floats()})
            np.testing.assert_allclose(program.output(before, 60), states, atol=1e-4 * np.abs(states).max())
        logits = quality.logits(weights, layerwise, program.normed(states)).reshape(2, 60, -1)
    for row, expected in zip(ids, logits, strict=True):
        np.testing.assert_allclose(llm.logits(row.tolist()), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("quant", "methods"), [("q4", "default"), ("q3", "default"), ("q3", "awq,gptq"), ("q4", "awq")]
)
def test_calibrated_weights_are_nearer_to_the_float_model(
    quant: str, methods: str, checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a text that calibration has not seen, the hidden states of the calibrated weights are nearer to those of the
    unquantized ones than those of weights rounded to nearest."""
    few(monkeypatch, 4096)
    directory = str(checkpoint("qwen3"))

    def states(scheme: str, methods: str | None) -> np.ndarray:
        build = Build(directory, quant=scheme, calibrate=methods)
        oracle = Oracle(build.config, build.weights(), build.scheme)
        text = "Seven boats lay in the harbour; the eighth, painted red, had left before sunrise."
        return oracle.hidden(calibration_data.Tokenizer.from_directory(directory).encode(text)[:40])

    exact = states("f32", None)
    nearest, calibrated = (np.square(states(quant, by) - exact).mean() for by in (None, methods))
    assert calibrated < 0.8 * nearest


def test_the_manifest_says_how(checkpoint: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    few(monkeypatch)
    text = tmp_path / "text.txt"
    text.write_text(calibration_data.PACKAGED.read_text("utf-8"), "utf-8")
    build = Build(str(checkpoint("llama")), quant="q3", calibrate="gptq", calibration_data=text)
    build.export_weights(tmp_path / "out")
    causes = artifact.causes_of(tmp_path / "out", "weights")["calibration"]
    assert causes["methods"] == ["gptq"] and causes["file"] == "text.txt"
    assert causes["sequences"] * causes["length"] == 2048
    assert not [path for path in (artifact.cache_root() / "calibration").iterdir() if path.is_dir()]
    other = Build(str(checkpoint("llama")), quant="q3", calibrate="gptq")
    assert other.conversion.causes["calibration"]["file"] == "calibration.jsonl"
    assert other.conversion.causes["calibration"]["tokens"] != causes["tokens"]


SCRIPT = """
import sys, time
from pathlib import Path
from llmserve.compile import calibration_data
from llmserve.compile.build import Build
calibration_data.TOKENS = 2048

def notify(step, detail, fraction):
    if step == "calibrate":
        print(detail, flush=True)
        if detail == sys.argv[2]:
            time.sleep(60)

print(Build(sys.argv[1], quant="q4", calibrate="gptq", notify=notify).weights())
"""


def start(directory: Path, cache: Path, stop_at: str) -> subprocess.Popen[str]:
    environment = os.environ | {"LLMSERVE_CACHE": str(cache), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", SCRIPT, str(directory), stop_at]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_killed_calibration_goes_on_where_it_stopped(checkpoint: Make, tmp_path: Path) -> None:
    """Killed at the second layer; then what had landed is not made again, and the result is the same to the bit."""
    directory = checkpoint("qwen3")
    process = start(directory, tmp_path / "killed", "layer 2 of 2")
    assert process.stdout
    seen = []
    while not seen or seen[-1] != "layer 2 of 2":
        seen.append(process.stdout.readline().strip())
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert seen == ["embedding", "layer 1 of 2", "layer 2 of 2"]
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed" / "calibration").iterdir() if path.is_dir()}
    assert len(parts) >= 2
    assert not (tmp_path / "killed" / "weights").exists() or not [
        path for path in (tmp_path / "killed" / "weights").iterdir() if not path.name.startswith(".")
    ]
    time.sleep(0.05)
    printed = start(directory, tmp_path / "killed", "").communicate()[0].splitlines()
    assert printed[:-1] == ["layer 2 of 2", "done"]
    whole = start(directory, tmp_path / "whole", "").communicate()[0].splitlines()
    assert whole[:-1] == ["embedding", "layer 1 of 2", "layer 2 of 2", "done"]
    resumed, once = ((Path(lines[-1]) / PARAMS_FILE).read_bytes() for lines in (printed, whole))
    assert resumed == once


@pytest.mark.parametrize("where", ["model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"])
def test_weights_that_are_no_numbers_are_named(
    where: str, checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few(monkeypatch)
    source = Checkpoint.open(checkpoint("llama"))
    for file in checkpoint("llama").iterdir():
        if file.name != SINGLE:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    specs = [TensorSpec(info.name, info.dtype, info.shape) for info in source.tensors.values()]
    with SafetensorsWriter(tmp_path / SINGLE, specs) as writer:
        for spec in specs:
            array = source.read(spec.name)
            if spec.name == where:
                array.reshape(-1)[77] = np.nan
            writer.write(spec.name, array)
    with pytest.raises(CheckpointError, match=rf"{where}: The weights hold NaN or infinity"):
        Build(str(tmp_path), quant="q4", calibrate="gptq").weights()


def test_text_that_is_too_short(checkpoint: Make, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("Not much to go by. " * 5, "utf-8")
    build = Build(str(checkpoint("llama")), quant="q4", calibrate="gptq", calibration_data=text)
    with pytest.raises(ConfigError, match=r"short\.txt has \d+ tokens, and at least 2,048 are needed"):
        build.weights()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"messages": "hello"}', "Line 1 of .* is no calibration text"),
        ("\n[1, 2]", "Line 2 of .* is no calibration text"),
        ("nonsense", "Line 1 of .* is no calibration text"),
    ],
)
def test_lines_that_are_no_text(content: str, complaint: str, checkpoint: Make, tmp_path: Path) -> None:
    text = tmp_path / "broken.jsonl"
    text.write_text(content, "utf-8")
    with pytest.raises(ConfigError, match=complaint):
        calibration_data.read(text, checkpoint("llama"), 512, 512)


def test_files_that_cannot_be_read(checkpoint: Make, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        calibration_data.read(tmp_path / "latin.txt", checkpoint("llama"), 512, 512)
    with pytest.raises(ConfigError, match=r"missing\.txt cannot be read"):
        calibration_data.read(tmp_path / "missing.txt", checkpoint("llama"), 512, 512)


@pytest.mark.parametrize("quant", ["none", "q8"])
def test_where_it_would_do_nothing_it_says_so(quant: str, checkpoint: Make) -> None:
    build, plain = (Build(str(checkpoint("llama")), quant=quant, calibrate=methods) for methods in ("default", None))
    assert any("Calibration would do nothing" in note for note in build.notes) and not plain.notes
    assert build.weights() == plain.weights()


def test_what_is_quantized_already_is_refused(checkpoint: Make, tmp_path: Path) -> None:
    Build(str(checkpoint("llama")), quant="q4").export_weights(tmp_path / "out")
    with pytest.raises(UnsupportedError, match="cannot be calibrated any more"):
        Build(str(tmp_path / "out"), calibrate="default")


def test_names_of_methods() -> None:
    assert calibrate.parse(None) == calibrate.parse("none") == ()
    assert calibrate.parse("default") == calibrate.DEFAULT
    assert calibrate.parse("gptq, search") == ("gptq",) and calibrate.parse("gptq,awq") == ("awq", "gptq")
    with pytest.raises(ConfigError, match="no calibration 'gpqt'; there are search, awq, gptq"):
        calibrate.parse("gpqt")
    assert calibrate.is_methods("gpqt") and calibrate.is_methods("none") and not calibrate.is_methods("Qwen/Qwen3-0.6B")
    assert not calibrate.is_methods("") and not calibrate.is_methods("--quant")


def test_the_packaged_text_is_long_enough_and_apart_from_what_is_judged_on() -> None:
    """No line of the evaluation's text that says anything is among what weights are calibrated with."""
    rows = [json.loads(line) for line in calibration_data.PACKAGED.read_text("utf-8").splitlines()]
    assert {"text", "messages"} <= {key for row in rows for key in row}
    assert calibration_data.read(None, Build(None).directory, 2048, 1024).ids.shape == (32, 512)
    seen = {line.strip() for row in rows for line in str(row.get("text", "")).splitlines()}
    judged = calibration_data.PACKAGED.with_name("evaluation.txt").read_text("utf-8").splitlines()
    assert not [line for line in judged if len(line.strip()) > 30 and line.strip() in seen]


def test_inputs_that_are_dead_are_told_of_also_after_an_interruption(
    checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A channel whose norm weight is 0 is dead for gate and up; the note is in what had landed before the kill."""
    few(monkeypatch)
    source = Checkpoint.open(checkpoint("llama"))
    for file in checkpoint("llama").iterdir():
        if file.name != SINGLE:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    specs = [TensorSpec(info.name, info.dtype, info.shape) for info in source.tensors.values()]
    with SafetensorsWriter(tmp_path / SINGLE, specs) as writer:
        for spec in specs:
            array = source.read(spec.name)
            if spec.name == "model.layers.0.post_attention_layernorm.weight":
                array[[5, 70]] = 0
            writer.write(spec.name, array)

    def stop(step: str, detail: str, fraction: float | None) -> None:
        if detail == "layer 2 of 2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Build(str(tmp_path), quant="q4", calibrate="gptq", notify=stop).weights()
    build = Build(str(tmp_path), quant="q4", calibrate="gptq")
    build.weights()
    assert "2 inputs of matrices were 0 in all of the calibration text." in build.notes
