"""Tiny tokenizers of each kind that checkpoints ship, built in memory: no download, no training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

SPECIALS = ["<|begin|>", "<|end|>", "<|im_start|>", "<|im_end|>"]
MARKERS = ["[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<|python_start|>", "<|python_end|>"]


def byte_level() -> Tokenizer:
    """256 bytes, a few merges, special tokens and an added one that is plain text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, "he", "ll", "hell", "hello", "Ġw", "Ã©"])}
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "w"), ("Ã", "©")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    tokenizer.add_tokens([AddedToken("<tool→call>", special=False)])
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in MARKERS])
    return tokenizer


def sentencepiece() -> Tokenizer:
    """Llama 2's kind: ▁ for the space, one put in front of the text, and <0xNN> for what the vocabulary lacks."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{b:02X}>": 3 + b for b in range(256)}
    for token in [*"▁helowrd", "he", "ll", "hell", "hello", "▁hello"]:
        vocab.setdefault(token, len(vocab))
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "hello")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<unk>", "<s>", "</s>")])
    return tokenizer


def word_piece() -> Tokenizer:
    """BERT's kind: whether a space stands before a token depends on the token, and on being the first."""
    vocab = {token: i for i, token in enumerate(["[UNK]", "hello", "world", "##ly", "!", "un"])}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def save(directory: Path, tokenizer: Tokenizer, **files: Any) -> Path:
    """A checkpoint directory with this tokenizer; each keyword is a JSON file's name and content."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return directory
