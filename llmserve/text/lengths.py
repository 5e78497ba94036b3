"""A lower bound on a text's number of tokens, from its bytes: a text that is far too long is never tokenized.

Tokenizing takes a second and a hundred megabytes for each megabyte, and cannot be interrupted. A token stands for at
most so many bytes of the text that it was made of: its own, or more where a step before makes text shorter.
"""

from __future__ import annotations

import heapq
import json
import math
import unicodedata
from typing import Any

import tokenizers

# Bytes before a step for each byte after it, at most; ASCII is left alone by Unicode's forms. Three Hangul letters of 3
# bytes each are a syllable of 3, the Kelvin sign of 3 bytes is a K, a mathematical a of 4 bytes is an a.
_SHRINKS = {"NFC": 3.0, "NFD": 3.0, "NFKC": 4.0, "NFKD": 4.0, "Lowercase": 3.0, "Prepend": 1.0, "ByteLevel": 1.0}
# Of steps that cut a text and keep all of it.
_KEEPS = frozenset({"ByteLevel", "Metaspace", "Digits", "UnicodeScripts", "FixedLength"})
_ANY = 1024.0  # bytes that a token of a tokenizer that may drop text, or has a token for all it does not know, is given
_SINGLED_OUT = 64  # tokens, the longest, that are looked for in a text
_BYTES_OF_UTF8 = (*range(0xC0), *range(0xC2, 0xF5))
_MARK = "\u2581"  # sentencepiece's space


class Lengths:
    """A bound for the texts of one tokenizer. Looks through the whole vocabulary once, which takes a moment."""

    def __init__(self, backend: tokenizers.Tokenizer, spellings: list[bytes] | None) -> None:
        """`spellings` are the bytes of all tokens; None where they depend on a token's neighbours."""
        self._steps = _parts(backend.normalizer, "normalizers")
        self._drops = spellings is None or _may_drop(backend, spellings)
        self._swallows = any(token.lstrip or token.rstrip for token in backend.get_added_tokens_decoder().values())
        longest = heapq.nlargest(_SINGLED_OUT + 1, spellings or (), key=len)
        self._rest = max(1, len(longest.pop())) if len(longest) > _SINGLED_OUT else 1
        self._longest = [spelt for spelt in longest if len(spelt) > self._rest]
        self._most = max(map(len, self._longest), default=self._rest)

    def least(self, text: str, enough: int) -> int:
        """Tokens that `text` has, or fewer; looks no closer once it is more than `enough`."""
        shrinks = self._shrinks(text)
        if self._drops or shrinks is None:
            return math.ceil(_num_bytes(text) / _ANY)
        if self._swallows:  # blanks beside some special tokens are part of them
            return math.ceil(_num_bytes("".join(text.split())) / (self._most * shrinks))
        data = text.replace(_MARK, " ").encode("utf-8", "surrogatepass")
        bound = len(data) / (self._most * shrinks)
        if shrinks == 1.0 and bound <= enough:
            # Long tokens are of blanks and rules mostly: where they are not in the text, the others have to do.
            long = sum(data.count(spelt) * len(spelt) for spelt in self._longest)
            bound = max(bound, (len(data) - long) / self._rest)
        return math.ceil(bound)

    def _shrinks(self, text: str) -> float | None:
        """What the normalizer may make of this text; None if it may be anything."""
        factor, is_plain = 1.0, text.isascii()
        for at, step in enumerate(self._steps):
            kind = step["type"]
            if kind == "Replace" and "String" in step["pattern"]:
                old, new = (it.replace(_MARK, " ") for it in (step["pattern"]["String"], step["content"]))
                if not new:
                    return None
                factor *= max(1.0, _num_bytes(old) / _num_bytes(new))
                is_plain = is_plain and new.isascii()
            elif kind not in _SHRINKS:
                return None
            elif not is_plain and not (at == 0 and kind == "NFC" and unicodedata.is_normalized(kind, text)):
                factor *= _SHRINKS[kind]
        return factor


def _num_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _parts(step: Any, name: str) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as the steps that it consists of."""
    found = [] if step is None else [json.loads(step.__getstate__())]
    while nested := next((it for it in found if it["type"] == "Sequence"), None):
        at = found.index(nested)
        found[at : at + 1] = nested[name]
    return found


def _may_drop(backend: tokenizers.Tokenizer, spellings: list[bytes]) -> bool:
    """Whether some text may come to no token of its own."""
    for step in _parts(backend.pre_tokenizer, "pretokenizers"):
        kind = step["type"]
        keeps = step["behavior"] != "Removed" if kind in ("Split", "Punctuation") else kind in _KEEPS
        if not keeps or step.get("replacement", _MARK) != _MARK:
            return True
    if not isinstance(backend.model, tokenizers.models.BPE):
        return True
    return not {bytes([byte]) for byte in _BYTES_OF_UTF8}.issubset(
        spellings
    )  # what is unknown is dropped, or one token
