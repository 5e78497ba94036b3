"""The training script on a tiny configuration: it learns, resumes, and saves what transformers reads."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from ..skips import package

torch = package("torch", "training")

from demo.data import make  # noqa: E402
from demo.model import Llama, Shape  # noqa: E402
from demo.train import BatchSource, Recipe, batches, train, write_checkpoint  # noqa: E402

TINY = Shape(hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("demo-data")
    make(directory, (300, 300), 1, modules=2)
    return directory


def test_the_loss_falls(data, tmp_path):
    recipe = Recipe(steps=30, tokens=1024, warmup=3)
    losses = train(data, tmp_path, TINY, recipe)
    assert len(losses) == 30 and np.mean(losses[-5:]) < np.mean(losses[:5]) - 1.0


def test_a_run_goes_on_where_it_stopped(data, tmp_path, monkeypatch):
    recipe = Recipe(steps=6, tokens=512, warmup=2, late_from=4)
    whole = train(data, tmp_path / "whole", TINY, recipe)
    stopped = itertools.islice(batches(data, recipe), 3)
    monkeypatch.setattr("demo.train.batches", lambda *args: stopped)
    first = train(data, tmp_path / "parts", TINY, recipe, save_every=3)
    monkeypatch.undo()
    rest = train(data, tmp_path / "parts", TINY, recipe)
    # The same operations on the same numbers, so the same losses.
    assert first + rest == whole and len(rest) == 3


def test_every_row_comes_once_in_an_epoch(data):
    source = BatchSource(data / "chats", 1024, 0)
    seen = sorted(row for batch in source._epoch_batches() for row in batch)
    assert seen == list(range(len(source.ends)))


@pytest.mark.reference
def test_the_checkpoint_is_what_transformers_computes(data, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    model = Llama(TINY)
    for weight in model.parameters():  # what bfloat16 holds, so that nothing is lost on the way
        weight.data = weight.data.bfloat16().float()
    write_checkpoint(model, data, tmp_path)
    other = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.randint(0, TINY.vocab_size, (2, 40))
    with torch.no_grad():
        ours, theirs = model.logits(model(ids)), other(ids).logits
    # float32 throughout; the two differ in the order of sums only.
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"
