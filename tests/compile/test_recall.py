"""Notes of earlier builds: believed only while all that they depend on is as it was, and enough to run without TVM."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmserve import artifact
from llmserve.compile import recall
from llmserve.compile.build import Build
from llmserve.compile.compiled import CompiledModel
from llmserve.compile.prepare import prepare
from llmserve.config import EngineConfig

pytestmark = pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="notes need to know the processor")


@pytest.fixture
def model(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint of the test's own, built; the library is the one that other tests have compiled."""
    directory = tmp_path / checkpoint("llama").name
    shutil.copytree(checkpoint("llama"), directory)
    return directory


@pytest.fixture
def built(model: Path) -> CompiledModel:
    return Build(str(model), quant="q4", device="cpu").run()


def recalled(model: Path, max_model_len: int | None = None, **choices: Any) -> recall.RecalledBuild | None:
    return recall.recall(recall.BuildRequest(str(model), **{"quant": "q4", "device": "cpu", **choices}), max_model_len)


def test_what_is_recalled_is_what_was_built(model: Path, built: CompiledModel) -> None:
    found = recalled(model)
    assert found is not None
    assert (found.label, found.tokenizer_directory) == (model.name, model)
    for field in fields(CompiledModel):
        if field.name == "notes":  # what was made then is not made now
            assert built.notes and found.compiled.notes == ()
        else:
            np.testing.assert_equal(getattr(found.run(), field.name), getattr(built, field.name), field.name)


def test_what_every_start_says_is_said(model: Path) -> None:
    build = Build(str(model), quant="q8", device="cpu", calibrate="gptq")
    assert "Calibration would do nothing" in build.notes[0]
    build.run()
    found = recalled(model, quant="q8", calibrate="gptq")
    assert found is not None and found.compiled.notes == (build.notes[0],)


@pytest.mark.parametrize(
    "choices", [{"max_model_len": 64}, {"quant": "q8"}, {"arch": "avx2"}, {"engine": EngineConfig(max_num_seqs=3)}]
)
def test_another_question_has_another_answer(model: Path, built: CompiledModel, choices: dict[str, Any]) -> None:
    assert recalled(model) is not None
    assert recalled(model, **choices) is None


def test_a_checkpoint_that_was_touched(model: Path, built: CompiledModel) -> None:
    file = next(model.glob("*.safetensors"))
    os.utime(file, ns=(0, 0))
    assert recalled(model) is None


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (artifact, "source_hash", lambda *parts: "other"),
        (recall, "tvm_version", lambda: "another TVM"),
        (recall, "_processor", lambda: "another processor"),
        (recall, "_processor", lambda: None),
    ],
)
def test_another_installation_or_machine(
    model: Path, built: CompiledModel, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, value: Any
) -> None:
    assert recalled(model) is not None
    monkeypatch.setattr(module, name, value)
    assert recalled(model) is None


def note_of(model: Path) -> Path:
    place = recall.BuildRequest(str(model), quant="q4", device="cpu")._note(None)
    assert place is not None
    return place[0]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"causes": 1}', "null"])
def test_a_note_that_cannot_be_read(model: Path, built: CompiledModel, text: str) -> None:
    note_of(model).write_text(text, encoding="utf-8")
    assert recalled(model) is None


@pytest.mark.parametrize("kind", ["params", "weights"])
def test_artifacts_that_are_gone_or_cut_short(model: Path, built: CompiledModel, kind: str) -> None:
    """Both belong to this test's checkpoint alone."""
    file = (built.params if kind == "params" else built.source) / "params.safetensors"
    with file.open("r+b") as opened:
        opened.truncate(100)
    assert recalled(model) is None
    shutil.rmtree(file.parent)
    assert recalled(model) is None
    made = prepare(str(model), engine=EngineConfig(), notify=lambda *step: None, quant="q4", device="cpu")
    assert isinstance(made, Build)
    assert made.run().source == built.source
    assert recalled(model) is not None


SERVE_ONCE = """
import json, sys
from pathlib import Path
from llmserve.compile.prepare import prepare
from llmserve.config import EngineConfig
from llmserve.engine import SamplingParams
from llmserve.engine.loading import load_core, scheduler_config
from llmserve.text.tokenizer import Tokenizer
from llmserve.weights.load import read_ahead
config = EngineConfig(kv_cache_memory=1 << 22)
ready = prepare(sys.argv[1], engine=config, notify=lambda *step: None, quant="q4", device="cpu")
read_ahead(ready.run().params)
tokenizer = Tokenizer.from_directory(ready.tokenizer_directory)
core = load_core(ready.run(), config, scheduler_config(ready.run(), config), tokenizer)
tokens = []
core.add_request("it", [1, 2, 3], SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True))
core.add_request("its vector", [1, 2, 3], SamplingParams(pooling="mean"))
while core.has_work():
    tokens += [t for out in core.step() if out.request_id == "it" for delta in out.deltas for t in delta.token_ids]
print(json.dumps([tokens, len(core.executor.runner._next._recordings), "tvm" in sys.modules]))
"""


def test_a_start_without_tvm_comes_to_the_same_tokens(model: Path, built: CompiledModel) -> None:
    from llmserve.engine import SamplingParams
    from llmserve.llm import LLM

    llm = LLM(model, quant="q4", device="cpu", kv_cache_memory="4MiB")
    (result,) = llm.generate([[1, 2, 3]], SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True))
    done = subprocess.run(
        [sys.executable, "-c", SERVE_ONCE, str(model)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    tokens, recordings, with_tvm = json.loads(done.stdout)
    assert tokens == list(result.outputs[0].token_ids)
    assert recordings  # which are made with the machine's own means
    assert not with_tvm
