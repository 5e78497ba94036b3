"""The three kinds of vocabulary that GGUF files hold, as the parts of a tokenizer.json that differ between them.

`gpt2` is byte-level BPE with its merges written out. `llama` is sentencepiece's BPE, whose merges follow from the
scores of its pieces (`gemma4`: the same with merges). `t5` is sentencepiece's unigram model. Added tokens, and the
tokens that begin and end a text, are in tokenizer.py.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ....errors import CheckpointError, UnsupportedError
from .pre import PRE

UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6
_SPACE = "▁"


class TokenizerKeys:
    """The `tokenizer.ggml.*` entries, checked; complaints name the file."""

    def __init__(self, metadata: Mapping[str, Any], source: Path) -> None:
        self.metadata, self.source = metadata, source
        self.tokens = self.texts("tokens")

    def get(self, name: str) -> Any:
        return self.metadata.get(f"tokenizer.ggml.{name}")

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            raise CheckpointError(f"{self.source}: tokenizer.ggml.{name} must be true or false, not {value!r:.40}.")
        return default if value is None else value

    def id_of(self, name: str) -> int | None:
        """A token's id; None where the file has none, or one that the vocabulary does not have."""
        value = self.get(f"{name}_token_id")
        return value if type(value) is int and 0 <= value < len(self.tokens) else None

    def texts(self, name: str) -> list[str]:
        value = self.get(name)
        if not isinstance(value, list) or not value or not isinstance(value[0], str):
            raise CheckpointError(f"{self.source} has no tokenizer.ggml.{name}, so its vocabulary is incomplete.")
        return value

    def numbers(self, name: str) -> list[Any]:
        value, count = self.get(name), len(self.tokens)
        if not isinstance(value, list) or len(value) != count or isinstance(value[0], str):
            raise CheckpointError(
                f"{self.source}: tokenizer.ggml.{name} must hold a number for each of {count} tokens."
            )
        return value

    def merges(self) -> list[list[str]]:
        # The first half of a pair may begin with a space.
        pairs = [(merge, merge.find(" ", 1)) for merge in self.texts("merges")]
        if any(at < 0 or at + 1 == len(merge) for merge, at in pairs):
            raise CheckpointError(f"{self.source}: tokenizer.ggml.merges must hold pairs with a space between.")
        return [[merge[:at], merge[at + 1 :]] for merge, at in pairs]


def byte_level(keys: TokenizerKeys) -> dict[str, Any]:
    name = keys.get("pre") or "default"
    if name not in PRE:
        raise UnsupportedError(
            f"{keys.source}: how its tokenizer cuts texts is only named, {name!r}, and not known here; known are "
            f"{', '.join(sorted(PRE))}; take the model's Hugging Face checkpoint, which spells it out."
        )
    pre = PRE[name]
    return {
        "normalizer": {"type": pre.form} if pre.form else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(pre.steps)},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": _bpe(keys.tokens, keys.merges()) | {"ignore_merges": pre.whole},
    }


def sentencepiece(keys: TokenizerKeys) -> dict[str, Any]:
    types, pieces = keys.numbers("token_type"), _pieces(keys)
    merges = keys.merges() if keys.get("merges") else _merges(pieces, types, keys.numbers("scores"))
    unknown = next((piece for piece, type_ in zip(pieces, types, strict=True) if type_ == UNKNOWN), None)
    if keys.flag("remove_extra_whitespaces", False):
        raise UnsupportedError(
            f"{keys.source}: tokenizer.ggml.remove_extra_whitespaces is not read for this vocabulary."
        )
    prefix = keys.flag("add_space_prefix", True)
    model = _bpe(pieces, merges) | {"unk_token": unknown, "fuse_unk": True, "byte_fallback": BYTE in types}
    return _spaced(prefix, []) | {"model": model}


def unigram(keys: TokenizerKeys) -> dict[str, Any]:
    types, scores = keys.numbers("token_type"), keys.numbers("scores")
    first: list[dict[str, Any]] = []
    if charsmap := keys.get("precompiled_charsmap"):
        data = bytes(value & 255 for value in charsmap)
        first.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()})
    if keys.flag("remove_extra_whitespaces", False):
        first.append({"type": "Strip", "strip_left": True, "strip_right": True})
        first.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    unknown = keys.id_of("unknown")
    vocab = [[piece, float(score)] for piece, score in zip(_pieces(keys), scores, strict=True)]
    model = {"type": "Unigram", "unk_id": 2 if unknown is None else unknown, "vocab": vocab}
    return _spaced(keys.flag("add_space_prefix", True), first) | {"model": model | {"byte_fallback": BYTE in types}}


# `tokenizer.ggml.model` → how it is read, and whether a text gets a first and a last token where the file does not say
# (byte-level vocabularies: pre.py says it).
MODELS: dict[str, tuple[Callable[[TokenizerKeys], dict[str, Any]], bool, bool]] = {
    "gpt2": (byte_level, False, False),
    "llama": (sentencepiece, True, False),
    "gemma4": (sentencepiece, True, False),
    "t5": (unigram, False, True),
}


def _spaced(prefix: bool, first: list[dict[str, Any]]) -> dict[str, Any]:
    """Sentencepiece's way with spaces: written as ▁, with one more in front of a text if `prefix`."""
    space = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
    ]
    prepend = [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*first, *prepend, space]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


def _pieces(keys: TokenizerKeys) -> list[str]:
    """The vocabulary as sentencepiece writes it: llama.cpp's converter puts real spaces into runs of them."""
    return [_SPACE * len(token) if token and not token.strip(" ") else token for token in keys.tokens]


def _merges(pieces: list[str], types: list[Any], scores: list[Any]) -> list[list[str]]:
    """Every way to put a piece together from two: the piece of the highest score first, of a score the longest halves.

    The order is that of Hugging Face's conversion (`generate_merges`). Pieces of the user's own have the score 0 in
    sentencepiece, and −1000 in files of llama.cpp's converter.
    """
    ids = {piece: i for i, piece in enumerate(pieces)}
    found = []
    for piece, i in ids.items():
        score = 0.0 if types[i] == USER_DEFINED else float(scores[i])
        parts = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        known = sorted((ids[a], ids[b], a, b) for a, b in parts if a in ids and b in ids)
        found += [(-score, -len(a), -len(b), i, order, [a, b]) for order, (_, _, a, b) in enumerate(known)]
    return [merge for *_, merge in sorted(found, key=lambda entry: entry[:5])]


def _bpe(tokens: list[str], merges: list[list[str]]) -> dict[str, Any]:
    vocab: dict[str, int] = {}
    for i, token in enumerate(tokens):
        vocab.setdefault(token, i)
    return {"type": "BPE", "dropout": None, "unk_token": None, "vocab": vocab, "merges": merges}
