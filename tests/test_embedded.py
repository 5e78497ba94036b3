"""The model that comes with the package, as `serve` and `chat` take it: what it is made of, and that it answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from demo.data import held_out_lines
from demo.evaluate import Answer, Row, exact_match, parsed
from llmserve import LLM
from llmserve.errors import CheckpointError
from llmserve.weights import embedded
from llmserve.weights.container import read_header

PER_FAMILY = 4


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(max_num_seqs=4)


def test_the_checkpoint_is_small_and_whole():
    directory = embedded.embedded_model()
    names = {file.name for file in directory.iterdir()}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md"} <= names
    assert {Path(name).suffix for name in names} <= {".json", ".safetensors", ".md"}
    assert sum(file.stat().st_size for file in directory.iterdir()) <= 25e6
    tensors = read_header(directory / "model.safetensors")
    assert sum(int(np.prod(tensor.shape)) for tensor in tensors.values()) <= 12e6
    config = json.loads((directory / "config.json").read_text())
    assert config["model_type"] == "llama" and config["torch_dtype"] == "bfloat16"


def test_a_package_without_its_model_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(embedded, "_PACKAGED", tmp_path)
    with pytest.raises(CheckpointError, match="install llmserve again"):
        embedded.embedded_model()


@pytest.mark.parametrize(
    "question, answer",
    [
        ("hello", "Hello! How can I help you?"),
        ("Who are you?", "I am llmserve-demo, a small language model that comes with llmserve."),
        ("What is 12 + 30?", "12 + 30 = 42"),
        ("What is the capital of France?", "The capital of France is Paris."),
        ("Who will win the next election?", "I do not know that. I am a small model and know only a few things."),
    ],
)
def test_what_a_new_user_asks_first(llm, question, answer):
    params = replace(llm.default_params, temperature=0.0, max_tokens=60)
    assert "".join(llm.chat([{"role": "user", "content": question}], params)) == answer


def test_it_answers_what_it_has_not_seen(llm):
    """A sample of the examination in the model card, whose figure for all families together is above this one."""
    params = replace(llm.default_params, temperature=0.0, max_tokens=160)

    def answer(row: Row) -> Answer:
        text = llm.chat_template.render(row["messages"][:-1], tools=row.get("tools"))
        ids = llm.tokenizer.encode(text, add_special_tokens=False)
        return parsed(llm.generate(ids, params)[0].outputs[0].text)

    counts = exact_match([json.loads(line) for line in held_out_lines(PER_FAMILY, 0)], answer)
    right, total = (sum(column) for column in zip(*counts.values(), strict=True))
    assert total == PER_FAMILY * len(counts) and right / total >= 0.85, counts
