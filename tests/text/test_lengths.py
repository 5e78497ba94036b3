"""The bound of a text's tokens from below: never above what the tokenizer gives, and close enough to be of use."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

import llmserve
from llmserve.errors import RequestError
from llmserve.text.tokenizer import Tokenizer

from . import samples

DEMO = Path(llmserve.__file__).parent / "data" / "llmserve-demo" / "tokenizer.json"


def normalized(make: Callable[[], Backend], normalizer: normalizers.Normalizer) -> Backend:
    backend = make()
    backend.normalizer = normalizer
    return backend


def dropping() -> Backend:
    backend = samples.byte_level()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return backend


def fusing() -> Backend:
    backend = Backend(models.BPE(vocab={"<unk>": 0, "a": 1}, merges=[], unk_token="<unk>", fuse_unk=True))
    backend.decoder = decoders.Fuse()
    return backend


def swallowing() -> Backend:
    backend = samples.byte_level()
    backend.add_special_tokens([AddedToken("<|user|>", special=True, rstrip=True, lstrip=True)])
    return backend


TOKENIZERS = {
    "byte level": samples.byte_level(),
    "sentencepiece": samples.sentencepiece(),
    "wordpiece": samples.word_piece(),
    "package's": Backend.from_file(str(DEMO)),
    "NFC": normalized(samples.byte_level, normalizers.NFC()),
    "NFKC": normalized(samples.byte_level, normalizers.NFKC()),
    "NFKC lower": normalized(samples.byte_level, normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])),
    "strip": normalized(samples.byte_level, normalizers.Strip()),
    "replace": normalized(samples.byte_level, normalizers.Replace("aaaa", "é")),
    "delete": normalized(samples.byte_level, normalizers.Replace("a", "")),
    "removed": dropping(),
    "fused": fusing(),
    "swallowed": swallowing(),
}
# What is long for its tokens, or becomes shorter: runs, jamo, ligatures, Kelvin, surrogate halves, marks, specials.
PIECES = st.sampled_from(
    [
        *(" ", "a", "aaaa", "hello", "  ", "\n", "▁", "▁hello", "é", "e\u0301", "\u1100\u1161\u11a8", "\u212a"),
        *("\U0001d41a", "ﷺ", "\ud800", "<|user|>", "<|im_start|>", "[TOOL_CALLS]", "-" * 40, "\u3000", "\x00", "日本"),
    ]
)
TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(st.tuples(PIECES, st.integers(1, 50)), max_size=8).map(lambda its: "".join(p * n for p, n in its)),
)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=TEXTS)
@settings(max_examples=150, deadline=None)
def test_it_is_never_above_the_truth(name: str, text: str) -> None:
    tokenizer = CACHE.setdefault(name, Tokenizer(TOKENIZERS[name]))
    ids = len(tokenizer.encode(text, add_special_tokens=False))
    # A tokenizer that drops text is given a thousand bytes for each token, which is no proof.
    least = tokenizer.least_tokens(text, enough=10**9)
    if name in ("strip", "delete", "removed", "fused", "wordpiece"):
        assert least <= max(ids, 1 + len(text.encode("utf-8", "surrogatepass")) // 1024)
    else:
        assert least <= ids


CACHE: dict[str, Tokenizer] = {}


@pytest.mark.parametrize(
    ("text", "bytes_per_token"),
    [("a", 16), (" ", 32), ("hello world ", 16), ("1", 16), ("\n", 16), ("日", 16), ("x = y\n", 16), ("-", 32)],
)
def test_it_is_of_use(text: str, bytes_per_token: int) -> None:
    tokenizer, size = Tokenizer(TOKENIZERS["package's"]), 10**7
    long = text * (size // len(text))
    began = time.thread_time()
    assert tokenizer.least_tokens(long, enough=10**5) > 10**5
    assert time.thread_time() - began < 1  # which a token of 32 bytes has told
    assert tokenizer.least_tokens(long, enough=10**9) >= len(long.encode()) / bytes_per_token
    assert time.thread_time() - began < 5


@pytest.mark.parametrize("error", [RuntimeError("odd"), type("PanicException", (BaseException,), {})("overflow")])
def test_what_the_package_cannot_bear_is_an_error_of_the_request(error: BaseException) -> None:
    class Panicking:
        def encode_batch_fast(self, *_: object, **__: object) -> None:
            raise error

    tokenizer = Tokenizer(samples.byte_level())
    tokenizer._backend = Panicking()
    with pytest.raises(RequestError, match=f"cannot take this text: {type(error).__name__}"):
        tokenizer.encode("a")
