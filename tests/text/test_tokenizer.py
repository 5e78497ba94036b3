"""Tokenizers of every kind: ids, the ends of a text, and text that streams as it decodes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.errors import CheckpointError
from llmserve.text.tokenizer import Tokenizer

from . import samples

BYTE_LEVEL = samples.byte_level()
SENTENCEPIECE = samples.sentencepiece()
WORD_PIECE = samples.word_piece()

BACKENDS = pytest.mark.parametrize("backend", [BYTE_LEVEL, SENTENCEPIECE, WORD_PIECE], ids=["byte", "sp", "wordpiece"])


def streamed(tokenizer: Tokenizer, ids: list[int], skip: bool = True) -> list[str]:
    stream = tokenizer.stream(skip)
    return [*map(stream.step, ids), stream.flush()]


@given(st.lists(st.integers(0, 270), max_size=60), st.booleans())
@settings(max_examples=300, deadline=None)
def test_byte_level_random_ids_stream_to_what_the_package_decodes(ids: list[int], skip: bool) -> None:
    # Ids that make no UTF-8 and ids beyond the vocabulary are among these.
    tokenizer = Tokenizer(BYTE_LEVEL)
    pieces = streamed(tokenizer, ids, skip)
    assert "".join(pieces) == BYTE_LEVEL.decode(ids, skip_special_tokens=skip) == tokenizer.decode(ids, skip)


@given(st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_text_survives_encoding_and_streams_in_whole_characters(text: str) -> None:
    for backend in (BYTE_LEVEL, SENTENCEPIECE):
        tokenizer = Tokenizer(backend)
        ids = tokenizer.encode(text, add_special_tokens=False)
        pieces = streamed(tokenizer, ids, skip=False)
        assert "".join(pieces) == backend.decode(ids, skip_special_tokens=False)
        if "\ufffd" not in text:
            assert not any("\ufffd" in piece for piece in pieces)


@given(st.lists(st.integers(0, 5), max_size=30))
@settings(max_examples=100, deadline=None)
def test_word_pieces_stream_to_the_whole(ids: list[int]) -> None:
    tokenizer = Tokenizer(WORD_PIECE)
    # An unspaced "!" after a window's cut is the one place where neighbours further back could matter; they do not.
    assert "".join(streamed(tokenizer, ids)) == WORD_PIECE.decode(ids)


@BACKENDS
def test_every_token_has_bytes(backend: object) -> None:
    tokenizer = Tokenizer(backend)  # type: ignore[arg-type]
    assert all(isinstance(tokenizer.token_bytes(i), bytes) for i in range(tokenizer.vocab_size))
    assert tokenizer.token_bytes(10**6) == b""


def test_bytes_of_tokens() -> None:
    tokenizer = Tokenizer(BYTE_LEVEL)
    ids = tokenizer.encode("é w", add_special_tokens=False)
    assert b"".join(map(tokenizer.token_bytes, ids)) == "é w".encode()
    assert tokenizer.token_bytes(BYTE_LEVEL.token_to_id("<tool→call>")) == "<tool→call>".encode()
    pieces = Tokenizer(SENTENCEPIECE)
    assert pieces.token_bytes(SENTENCEPIECE.token_to_id("<0xE2>")) == b"\xe2"
    assert pieces.token_bytes(SENTENCEPIECE.token_to_id("▁hello")) == b" hello"


def test_broken_bytes_show_at_the_end() -> None:
    tokenizer = Tokenizer(SENTENCEPIECE)
    euro = [SENTENCEPIECE.token_to_id(f"<0x{b:02X}>") for b in "€".encode()]
    stream = tokenizer.stream()
    assert [stream.step(i) for i in euro] == ["", "", "€"]
    assert stream.step(euro[0]) == ""
    assert stream.flush() == "\ufffd"


def test_a_continued_text_keeps_its_leading_space() -> None:
    tokenizer = Tokenizer(SENTENCEPIECE)
    hello = SENTENCEPIECE.token_to_id("▁hello")
    assert tokenizer.stream().step(hello) == "hello"
    assert tokenizer.stream(continues=True).step(hello) == " hello"


def test_streaming_takes_constant_time_per_token() -> None:
    tokenizer = Tokenizer(BYTE_LEVEL)
    broken = BYTE_LEVEL.token_to_id("Ã")  # never a whole character: the worst case for schemes that wait
    start = time.perf_counter()
    streamed(tokenizer, [broken] * 100_000)
    assert time.perf_counter() - start < 5


def test_ends_of_text_are_the_union_of_what_the_files_say(tmp_path: Path) -> None:
    ids = {text: BYTE_LEVEL.token_to_id(text) for text in samples.SPECIALS}
    samples.save(
        tmp_path,
        BYTE_LEVEL,
        tokenizer_config={"bos_token": {"content": "<|begin|>"}, "eos_token": "<|im_end|>", "add_bos_token": True},
        generation_config={"eos_token_id": [ids["<|end|>"]]},
        config={"eos_token_id": ids["<|im_start|>"], "vocab_size": 512},
    )
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.eos_token_ids == {ids["<|end|>"], ids["<|im_start|>"], ids["<|im_end|>"]}
    assert tokenizer.bos_token_id == ids["<|begin|>"]
    assert tokenizer.special_tokens == {"bos_token": "<|begin|>", "eos_token": "<|im_end|>"}
    assert tokenizer.vocab_size == BYTE_LEVEL.get_vocab_size(with_added_tokens=True)
    assert tokenizer.encode("he")[0] == ids["<|begin|>"]
    assert tokenizer.encode("he", add_special_tokens=False) == tokenizer.encode("he")[1:]


def test_a_checkpoint_without_tokenizer_json_is_told_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json.*save_pretrained"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_an_unusable_tokenizer_json_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.from_directory(tmp_path)


def test_an_unusable_side_file_is_named(tmp_path: Path) -> None:
    samples.save(tmp_path, BYTE_LEVEL)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config\.json is not JSON"):
        Tokenizer.from_directory(tmp_path)
