"""A small byte-level BPE tokenizer for random checkpoints: real in form, trained on the few lines below.

Byte-level, so that any text round-trips; ChatML markers and template, so that chat works. Not meant to compress.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

_TEXT = """
A language model reads a sequence of tokens and says which token is likely to come next. The first tokens are the
prompt, and all of them can be read at once; after that every new token has to wait for the one before it. What the
model has read is kept as keys and values, page by page, so that nothing is computed twice. The server answers many
people at the same time: it takes the next step of each sequence together, and so reads the weights only once.
Weights are numbers, and there are a lot of them. Stored with four bits each they take a quarter of the room, and the
time of a step is mostly the time that it takes to bring them from memory to where they are multiplied.
Hello! How are you today? I am well, thank you. What would you like to know? Tell me a story about the sea. Once upon
a time there was a small boat, and the boat had a name, but nobody could remember it. Please write a short answer.
def main(): return {"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius"}}  # 0123456789
for (int i = 0; i < n; ++i) { sum += x[i] * y[i]; } if (a == b && c != d) print("true", 'false', [1, 2.5, -3e4]);
Größe, café, naïve, señor; 你好,世界。 Привет, мир! こんにちは 😀 \t\n\n    - one\n    - two\n    - three\n
"""
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def write_tokenizer(out: Path, vocab_size: int, max_length: int) -> dict[str, Any]:
    """Writes tokenizer.json and tokenizer_config.json; returns the special ids as config.json spells them.

    The vocabulary has exactly `vocab_size` entries, the special tokens last. ValueError below 256 bytes + 3 specials.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    room = vocab_size - len(SPECIALS)
    if room < 256:
        raise ValueError(f"a byte-level vocabulary needs {256 + len(SPECIALS)} entries, not {vocab_size}")
    split = pre_tokenizers.Split(Regex(_PATTERN), "isolated")
    pre = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=room, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator([_TEXT], trainer)
    vocab, merges = _filled(json.loads(trained.to_str())["model"], room)

    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": _TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    end, _, turn_end = range(room, vocab_size)
    return {"bos_token_id": end, "eos_token_id": [turn_end, end], "pad_token_id": end}


def _filled(model: dict[str, Any], room: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The trained vocabulary, filled up to `room` by merging token with token: rarely met in text, but well-formed."""
    vocab, merges = dict(model["vocab"]), [(left, right) for left, right in model["merges"]]
    tokens = sorted(vocab, key=lambda token: (-len(token), token))
    for left, right in product(tokens, tokens):
        if len(vocab) < room and left + right not in vocab:
            vocab[left + right] = len(vocab)
            merges.append((left, right))
    return vocab, merges
