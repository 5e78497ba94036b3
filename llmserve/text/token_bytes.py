"""The bytes that each token stands for, from the decoder of a tokenizer.json.

Byte-level BPE (GPT-2, Llama 3, Qwen) and sentencepiece exports (Llama 2, Mistral, Gemma) spell each token the same
way wherever it stands, so text can be put together from bytes, one token at a time. A decoder that is neither (say
WordPiece, which looks at its neighbours) gives None here and is handled by windows of decoded text instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: visible Latin-1 stands for itself, the rest from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(0x100 + i): b for i, b in enumerate(hidden)}


# For str.translate: each stand-in becomes its byte as a character of Latin-1; what is none becomes no such character.
_BYTES = dict.fromkeys(range(256), "\u0100") | {ord(c): chr(b) for c, b in _byte_level_alphabet().items()}


@dataclass(frozen=True, slots=True)
class Spelling:
    """The way from tokens to bytes: `spell` takes a token's vocabulary string; `strip` leading spaces open no text."""

    spell: Callable[[str], bytes]
    strip: int = 0


def byte_level(token: str) -> bytes:
    """The bytes of a byte-level BPE token; one with a foreign character (an added token) stands for itself."""
    try:
        return token.translate(_BYTES).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode()


def _sentencepiece(replacements: list[tuple[str, str]], byte_fallback: bool) -> Callable[[str], bytes]:
    def spell(token: str) -> bytes:
        if byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        for old, new in replacements:
            token = token.replace(old, new)
        return token.encode()

    return spell


def spelling_of(decoder: dict[str, Any]) -> Spelling | None:
    """The spelling that a tokenizer.json `decoder` entry describes, or None if it depends on a token's neighbours."""
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return Spelling(byte_level)
    replacements: list[tuple[str, str]] = []
    strip = 0
    for position, step in enumerate(steps):
        if step["type"] == "Replace" and "String" in step["pattern"]:
            replacements.append((step["pattern"]["String"], step["content"]))
        elif step["type"] == "Metaspace":
            replacements.append((step["replacement"], " "))
            strip += step.get("prepend_scheme", "always") != "never"
        elif step["type"] == "Strip" and step["content"] == " " and step["stop"] == 0 and "Fuse" in kinds[:position]:
            strip += step["start"]
        elif step["type"] not in ("ByteFallback", "Fuse"):
            return None
    return Spelling(_sentencepiece(replacements, "ByteFallback" in kinds), strip)
