"""The models that are compared: a random one's every token can be shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints import spell_out
from tokenizers import Tokenizer

from llmserve.compile.random_checkpoint import TINY_LLAMA, write_random_checkpoint


@pytest.mark.slow
def test_every_token_but_single_bytes_has_a_text(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, {**TINY_LLAMA, "vocab_size": 4096, "num_hidden_layers": 1})
    file = tmp_path / "tokenizer.json"
    before = json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"]
    unshown = sum("\ufffd" in Tokenizer.from_file(str(file)).decode([i]) for i in range(4096))
    assert unshown > 128, "or there would be nothing to do"
    spell_out(file)
    tokenizer = Tokenizer.from_file(str(file))
    assert tokenizer.get_vocab_size() == 4096
    assert sorted(json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"].values()) == sorted(before.values())
    assert sum("\ufffd" in tokenizer.decode([i]) for i in range(4096)) == 128
    for text in ("Hello! How are you?", "Größe 😀"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
