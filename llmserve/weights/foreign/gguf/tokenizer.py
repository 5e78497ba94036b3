"""A GGUF file's vocabulary as the files that a Hugging Face checkpoint has: tokenizer.json and tokenizer_config.json.

Two kinds of vocabulary are known: `gpt2`, byte-level BPE with its merges written out, and `llama`, sentencepiece's BPE,
whose merges follow from the scores of its pieces. How a text is cut before BPE is only named in the file
(`tokenizer.ggml.pre`), so that each name has to be known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....errors import CheckpointError, UnsupportedError

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# `tokenizer.ggml.pre` → (pattern of the pieces, whether a piece that is a token is taken whole, Unicode normal form).
_PRE: dict[str, tuple[str, bool, str | None]] = {
    "gpt-2": (_GPT2, False, None),
    "llama-bpe": (_CASELESS + r"\p{N}{1,3}" + _REST, True, None),
    "qwen2": (_CASELESS + r"\p{N}" + _REST, False, "NFC"),
    "tekken": (_TEKKEN, True, None),
}
_PRE |= {"default": _PRE["gpt-2"], "llama3": _PRE["llama-bpe"], "llama-v3": _PRE["llama-bpe"]}


def tokenizer_files(metadata: Mapping[str, Any], source: Path) -> dict[str, dict[str, Any]]:
    """File name → its content.

    Raises UnsupportedError for a vocabulary of another kind, CheckpointError for one that is incomplete.
    """
    keys = _Keys(metadata, source)
    kind = metadata.get("tokenizer.ggml.model")
    tokens = keys.texts("tokens")
    if kind == "gpt2":
        model = _byte_level(keys, tokens)
    elif kind == "llama":
        model = _sentencepiece(keys, tokens)
    else:
        raise UnsupportedError(f"{source}: vocabularies of kind {kind!r} are not read; 'gpt2' and 'llama' are.")
    types = keys.numbers("token_type", len(tokens))
    added = [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": types[i] != _USER_DEFINED,
        }
        for i, token in enumerate(tokens)
        if types[i] in (_UNKNOWN, _CONTROL, _USER_DEFINED) and token
    ]
    head = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "post_processor": None}
    return {"tokenizer.json": head | model, "tokenizer_config.json": _settings(keys, tokens, kind)}


def special_ids(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The ids of config.json: what begins a text, and all that may end it."""
    ids = {name: metadata.get(f"tokenizer.ggml.{name}") for name in ("bos_token_id", "eos_token_id", "eot_token_id")}
    ends = list(dict.fromkeys(i for i in (ids["eos_token_id"], ids["eot_token_id"]) if isinstance(i, int)))
    found: dict[str, Any] = {"bos_token_id": ids["bos_token_id"], "eos_token_id": ends}
    return {name: value for name, value in found.items() if value not in (None, [])}


class _Keys:
    """The `tokenizer.ggml.*` entries, checked; complaints name the file."""

    def __init__(self, metadata: Mapping[str, Any], source: Path) -> None:
        self.metadata, self.source = metadata, source

    def get(self, name: str) -> Any:
        return self.metadata.get(f"tokenizer.ggml.{name}")

    def texts(self, name: str) -> list[str]:
        value = self.get(name)
        if not isinstance(value, list) or not value or not isinstance(value[0], str):
            raise CheckpointError(f"{self.source} has no tokenizer.ggml.{name}, so its vocabulary is incomplete.")
        return value

    def numbers(self, name: str, count: int) -> list[Any]:
        value = self.get(name)
        if not isinstance(value, list) or len(value) != count or isinstance(value[0], str):
            raise CheckpointError(
                f"{self.source}: tokenizer.ggml.{name} must hold a number for each of {count} tokens."
            )
        return value


def _byte_level(keys: _Keys, tokens: list[str]) -> dict[str, Any]:
    pre = keys.get("pre") or "default"
    if pre not in _PRE:
        raise UnsupportedError(
            f"{keys.source}: how its tokenizer cuts texts is only named, {pre!r}, and not known here; known are "
            f"{', '.join(sorted(_PRE))}; take the model's Hugging Face checkpoint, which spells it out."
        )
    pattern, whole, form = _PRE[pre]
    merges = [merge.split(" ", 1) for merge in keys.texts("merges")]
    if any(len(merge) != 2 for merge in merges):
        raise CheckpointError(f"{keys.source}: tokenizer.ggml.merges must hold pairs with a space between.")
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "normalizer": {"type": form} if form else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "decoder": byte_level,
        "model": _bpe(tokens, merges) | {"ignore_merges": whole},
    }


def _sentencepiece(keys: _Keys, tokens: list[str]) -> dict[str, Any]:
    scores, types = keys.numbers("scores", len(tokens)), keys.numbers("token_type", len(tokens))
    prefix = keys.get("add_space_prefix") is not False
    unknown = next((token for token, type_ in zip(tokens, types, strict=True) if type_ == _UNKNOWN), None)
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    normalizers: list[dict[str, Any]] = [{"type": "Prepend", "prepend": "▁"}, space] if prefix else [space]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
    ]
    model = _bpe(tokens, _merges(tokens, scores)) | {"unk_token": unknown, "fuse_unk": True, "byte_fallback": True}
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


def _merges(tokens: list[str], scores: list[float]) -> list[list[str]]:
    """Every way to put a piece together from two, the piece of the highest score first."""
    ids = {token: i for i, token in enumerate(tokens)}
    found = []
    for token, i in ids.items():
        parts = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = sorted((ids[a], ids[b], a, b) for a, b in parts if a in ids and b in ids)
        found += [(-scores[i], i, order, [a, b]) for order, (_, _, a, b) in enumerate(known)]
    return [merge for *_, merge in sorted(found, key=lambda entry: entry[:3])]


def _bpe(tokens: list[str], merges: list[list[str]]) -> dict[str, Any]:
    vocab: dict[str, int] = {}
    for i, token in enumerate(tokens):
        vocab.setdefault(token, i)
    return {"type": "BPE", "dropout": None, "unk_token": None, "vocab": vocab, "merges": merges}


def _settings(keys: _Keys, tokens: list[str], kind: str) -> dict[str, Any]:
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        i = keys.get(f"{key}_token_id")
        if isinstance(i, int) and 0 <= i < len(tokens):
            settings[f"{name}_token"] = tokens[i]
    add_bos = keys.get("add_bos_token")
    settings["add_bos_token"] = kind == "llama" if add_bos is None else add_bos is True
    template = keys.metadata.get("tokenizer.chat_template")
    named = {
        key.removeprefix("tokenizer.chat_template."): value
        for key, value in keys.metadata.items()
        if key.startswith("tokenizer.chat_template.") and isinstance(value, str)
    }
    if isinstance(template, str):
        parts = [{"name": name, "template": text} for name, text in ({"default": template} | named).items()]
        settings["chat_template"] = parts if named else template
    return settings
