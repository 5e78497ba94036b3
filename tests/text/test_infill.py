"""Fill in the middle, for each of the layouts that models are trained on."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken

from llmserve.errors import RequestError
from llmserve.text.infill import infill
from llmserve.text.tokenizer import Tokenizer
from tests.text import samples


def tokenizer_with(*markers: str) -> Tokenizer:
    backend = samples.byte_level()
    backend.add_special_tokens([AddedToken(text, special=True) for text in markers])
    return Tokenizer(backend, special_tokens={"eos_token": "<|end|>", "bos_token": "<|begin|>"}, add_bos=True)


@pytest.mark.parametrize(
    ("markers", "expected"),
    [
        (("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"), "<|fim_prefix|>hello<|fim_suffix|> w<|fim_middle|>"),
        (("<fim_prefix>", "<fim_suffix>", "<fim_middle>"), "<fim_prefix>hello<fim_suffix> w<fim_middle>"),
        (("▁<PRE>", "▁<SUF>", "▁<MID>"), "▁<PRE>hello▁<SUF> w▁<MID>"),
        (("[PREFIX]", "[SUFFIX]"), "[SUFFIX] w[PREFIX]hello"),
        (
            ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # noqa: RUF001
            "<｜fim▁begin｜>hello<｜fim▁hole｜> w<｜fim▁end｜>",  # noqa: RUF001
        ),
    ],
)
def test_the_layout_is_the_one_that_the_tokenizer_has_tokens_for(markers: tuple[str, ...], expected: str) -> None:
    tokenizer = tokenizer_with(*markers, "<|endoftext|>")
    (end,) = (tokenizer.id_of("<|endoftext|>"),)
    for prefix in ("hello", tokenizer.encode("hello", add_special_tokens=False)):
        ids, ends = infill(tokenizer, prefix, " w")
        assert tokenizer.decode(ids, skip_special_tokens=False) == "<|begin|>" + expected
        assert ends == (end,)
        assert infill(tokenizer, prefix, " w", add_special_tokens=False)[0] == ids[1:]


def test_a_tokenizer_without_the_tokens_is_refused_in_words() -> None:
    with pytest.raises(RequestError, match="tokens for filling in the middle") as caught:
        infill(tokenizer_with("<|fim_prefix|>"), "a", "b")
    assert caught.value.param == "suffix"
