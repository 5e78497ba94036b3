"""Tokens that stand only beside tokenizer.json, as `transformers` takes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from llmserve.errors import CheckpointError
from llmserve.text.tokenizer import Tokenizer

from ..skips import package
from . import samples

SAMPLE = samples.byte_level()
SIZE = SAMPLE.get_vocab_size(with_added_tokens=True)
TEXTS = (
    "hello <new>he",
    "a <new> b",
    "<strip>   he",
    "he   <strip>he",
    "x <|begin|> hell y",
    "<plain> <|im_end|>",
    "<new><new>",
)
FLAGS = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": False}


def entry(content: str, **flags: bool) -> dict[str, Any]:
    return {"content": content} | FLAGS | flags


CASES: dict[str, dict[str, Any]] = {
    "added_tokens.json alone": {"added_tokens": {"<new>": SIZE, "<plain>": SIZE + 1}},
    "added_tokens_decoder alone": {
        "tokenizer_config": {
            "added_tokens_decoder": {
                str(SIZE): entry("<new>", special=True),
                str(SIZE + 1): entry("<strip>", lstrip=True, rstrip=True),
                str(SIZE + 2): entry("<plain>", normalized=True),
            }
        }
    },
    "one that was plain is special": {
        "tokenizer_config": {
            "added_tokens_decoder": {str(SAMPLE.token_to_id("<tool→call>")): entry("<tool→call>", special=True)}
        }
    },
    "a piece of the vocabulary is special": {
        "tokenizer_config": {"added_tokens_decoder": {str(SAMPLE.token_to_id("hell")): entry("hell", special=True)}}
    },
    "only named": {"tokenizer_config": {"eos_token": "hell", "additional_special_tokens": ["Ġw"]}},
}  # fmt: skip


@pytest.mark.reference
@pytest.mark.parametrize("case", CASES)
def test_as_transformers_takes_them(tmp_path: Path, case: str) -> None:
    transformers = package("transformers", "transformers as a reference")
    files = {"tokenizer_config": {}} | CASES[case]
    files["tokenizer_config"] = {"tokenizer_class": "PreTrainedTokenizerFast"} | files["tokenizer_config"]
    path = samples.save(tmp_path, samples.byte_level(), **files)
    ours, theirs = Tokenizer.from_directory(path), transformers.PreTrainedTokenizerFast.from_pretrained(str(path))
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text), text
        ids = theirs.encode(text)
        assert ours.decode(ids, False) == theirs.decode(ids, clean_up_tokenization_spaces=False)
    decoder = theirs.added_tokens_decoder
    assert {ours.id_of(text) for text in ours.added_tokens} == decoder.keys()
    assert ours.special_ids == {i for i, token in decoder.items() if token.special}


def test_ids_may_lie_apart(tmp_path: Path) -> None:
    """A vocabulary padded to a round number, with the added tokens behind it."""
    for backend in (samples.byte_level(), samples.sentencepiece(), samples.word_piece()):
        path = samples.save(tmp_path, backend, added_tokens={"<far>": 5000, "<farther>": 5002})
        tokenizer = Tokenizer.from_directory(path)
        assert tokenizer.encode("<farther><far>", add_special_tokens=False) == [5002, 5000]
        assert tokenizer.vocab_size == 5003 and tokenizer.token(5001) == ""
        assert tokenizer.decode([5000, 5001, 5002]).replace(" ", "") == "<far><farther>"


def test_a_unigram_vocabulary_goes_on_without_gaps(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    tokenizer = Tokenizer.from_directory(samples.save(tmp_path, backend, added_tokens={"<new>": 2}))
    assert tokenizer.encode("a<new>a") == [1, 2, 1]
    with pytest.raises(CheckpointError, match=r"the token '<far>' has no place with the id 5"):
        Tokenizer.from_directory(samples.save(tmp_path, backend, added_tokens={"<far>": 5}))


def test_nothing_new_leaves_the_tokenizer_as_it_is(tmp_path: Path) -> None:
    known = {str(i): entry(t.content, special=t.special) for i, t in SAMPLE.get_added_tokens_decoder().items()}
    path = samples.save(tmp_path, samples.byte_level(), tokenizer_config={"added_tokens_decoder": known})
    tokenizer = Tokenizer.from_directory(path)
    assert tokenizer.vocab_size == SIZE and len(tokenizer.added_tokens) == len(known)


def test_a_last_token_where_the_checkpoint_wants_one(tmp_path: Path) -> None:
    settings = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "add_bos_token": True, "add_eos_token": True}
    tokenizer = Tokenizer.from_directory(samples.save(tmp_path, samples.byte_level(), tokenizer_config=settings))
    begin, end = map(tokenizer.id_of, ("<|begin|>", "<|end|>"))
    assert tokenizer.encode("he") == [begin, tokenizer.id_of("he"), end]
    assert tokenizer.encode("he<|end|>")[-2:] == [tokenizer.id_of("he"), end]
    assert tokenizer.encode("he", add_special_tokens=False) == [tokenizer.id_of("he")]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"added_tokens": {"<new>": 5}}, r"has two tokens with the id 5: .* and '<new>'"),
        ({"added_tokens": {"<new>": "x"}}, r"added_tokens\.json: 'x' is no token's id"),
        ({"added_tokens": {"<new>": 1 << 40}}, r"is no token's id"),
        ({"tokenizer_config": {"added_tokens_decoder": []}}, r"'added_tokens_decoder' must be an object"),
        ({"tokenizer_config": {"added_tokens_decoder": {"7": "x"}}}, r"'added_tokens_decoder' holds no token at '7'"),
        ({"tokenizer_config": {"added_tokens_decoder": {"-7": entry("x")}}}, r"'-7' is no token's id"),
    ],
)
def test_entries_that_are_no_tokens(tmp_path: Path, files: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        Tokenizer.from_directory(samples.save(tmp_path, samples.byte_level(), **json.loads(json.dumps(files))))
