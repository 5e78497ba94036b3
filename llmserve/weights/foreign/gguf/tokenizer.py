"""A GGUF file's vocabulary as the files that a Hugging Face checkpoint has: tokenizer.json, tokenizer_config.json and
generation_config.json.

vocabulary.py makes the model; here are the added tokens, those that begin and end a text, and the chat templates.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....errors import UnsupportedError
from .pre import PRE
from .vocabulary import CONTROL, MODELS, UNKNOWN, USER_DEFINED, TokenizerKeys

# Texts of tokens that end a turn, whatever the file says of their kind (llama.cpp looks for the same).
_ENDS = frozenset(
    (
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<end_of_turn>"),
        *("<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "<|end_of_text|>", "<end_of_utterance>", "[e~["),
        *("<turn|>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
    )
)
# In these formats <|end|> ends a message, and one of the others the turn.
_MESSAGES_END = (frozenset(("<|return|>", "<|call|>")), frozenset(("<|calls|>", "<|flush|>")))
_READ = frozenset(
    (
        *("model", "pre", "tokens", "token_type", "scores", "merges", "precompiled_charsmap", "token_type_count"),
        *("add_bos_token", "add_eos_token", "add_space_prefix", "remove_extra_whitespaces"),
    )
)
# Tokens of Phi-3 that take no blanks away after them, as all its others do. A GGUF file has no place to say it.
_PHI3_PLAIN = ("<unk>", "<s>", "<|endoftext|>")
# `general.sampling.*` → generation_config.json
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


def tokenizer_files(metadata: Mapping[str, Any], source: Path) -> dict[str, dict[str, Any]]:
    """File name → its content.

    Raises UnsupportedError for a vocabulary of another kind, CheckpointError for one that is incomplete.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in MODELS:
        known = ", ".join(map(repr, MODELS))
        raise UnsupportedError(f"{source}: vocabularies of kind {kind!r} are not read; {known} are.")
    _refuse_others(metadata, source)
    keys = TokenizerKeys(metadata, source)
    build, bos, eos = MODELS[kind]
    model = build(keys)
    if kind == "gpt2":
        bos = PRE[keys.get("pre") or "default"].bos
    added = (keys.flag("add_bos_token", bos), keys.flag("add_eos_token", eos))
    ids = special_ids(metadata)
    head = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": _added_tokens(keys)}
    around = {"bos": keys.id_of("bos") if added[0] else None, "eos": keys.id_of("eos") if added[1] else None}
    return {
        "tokenizer.json": head | model | {"post_processor": _template(keys, **around)},
        "tokenizer_config.json": _settings(keys, *added),
        "generation_config.json": ids | _sampling(metadata),
    }


def special_ids(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The ids of config.json and generation_config.json: what begins a text, and all that may end it."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    tokens = tokens if isinstance(tokens, list) else []
    named = {name: metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot", "eom", "padding")}
    found = {name: i for name, i in named.items() if type(i) is int and 0 <= i < len(tokens)}
    by_text = {token: i for i, token in enumerate(tokens) if token in _ENDS}
    if any(messages <= by_text.keys() for messages in _MESSAGES_END):
        by_text.pop("<|end|>", None)
    ends = list(dict.fromkeys([*(found[n] for n in ("eos", "eot", "eom") if n in found), *by_text.values()]))
    ids: dict[str, Any] = {"bos_token_id": found.get("bos"), "eos_token_id": ends, "pad_token_id": found.get("padding")}
    return {name: value for name, value in ids.items() if value not in (None, [])}


def _refuse_others(metadata: Mapping[str, Any], source: Path) -> None:
    """A key that may change how texts are read, and is not known here, is refused by name."""
    for key, value in metadata.items():
        name = key.removeprefix("tokenizer.ggml.")
        if name == key or name in _READ or name.endswith("_token_id") or (name == "add_sep_token" and value is False):
            continue
        raise UnsupportedError(f"{source}: {key} ({value!r:.40}) is not known here, and may change how texts are read.")


def _added_tokens(keys: TokenizerKeys) -> list[dict[str, Any]]:
    """Tokens that are found in a text before it is cut: the special ones, and the user's own."""
    name = str(keys.metadata.get("general.name", "")).lower()
    strips = keys.get("model") == "llama" and ("phi-3" in name or "phi3" in name)
    types = keys.numbers("token_type")
    found = []
    for i, token in enumerate(keys.tokens):
        special = types[i] in (UNKNOWN, CONTROL) or token in _ENDS
        if not token or not (special or types[i] == USER_DEFINED):
            continue
        if keys.get("model") != "gpt2" and not token.strip(" "):
            continue  # sentencepiece's runs of spaces are put together by merges
        entry = {"id": i, "content": token, "single_word": False, "lstrip": False, "normalized": False}
        found.append(entry | {"rstrip": strips and token not in _PHI3_PLAIN, "special": special})
    return found


def _template(keys: TokenizerKeys, bos: int | None, eos: int | None) -> dict[str, Any] | None:
    """The post-processor that puts these around a text."""
    ids = [i for i in (bos, eos) if i is not None]
    if not ids:
        return None

    def around(*texts: str) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = []
        for number, text in enumerate(texts):
            for kind, value in (("SpecialToken", bos), ("Sequence", text), ("SpecialToken", eos)):
                if value is not None:
                    name = value if isinstance(value, str) else keys.tokens[value]
                    parts.append({kind: {"id": name, "type_id": number}})
        return parts

    tokens = {keys.tokens[i]: {"id": keys.tokens[i], "ids": [i], "tokens": [keys.tokens[i]]} for i in ids}
    return {"type": "TemplateProcessing", "single": around("A"), "pair": around("A", "B"), "special_tokens": tokens}


def _settings(keys: TokenizerKeys, add_bos: bool, add_eos: bool) -> dict[str, Any]:
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        if (i := keys.id_of(key)) is not None:
            settings[f"{name}_token"] = keys.tokens[i]
    settings |= {"add_bos_token": add_bos, "add_eos_token": add_eos}
    templates = _chat_templates(keys.metadata)
    if templates.keys() == {"default"}:
        settings["chat_template"] = templates["default"]
    elif templates:
        settings["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    return settings


def _chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Name → template. A word such as `mistral-v7` names one of llama.cpp's own templates, and is none."""
    found = {}
    for key, value in metadata.items():
        name = key.removeprefix("tokenizer.chat_template")
        if name != key and isinstance(value, str) and (not name or name.startswith(".")) and "{" in value:
            found[name[1:] or "default"] = value
    return dict(sorted(found.items(), key=lambda item: item[0] != "default"))


def _sampling(metadata: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, name in _SAMPLING.items():
        value = metadata.get(f"general.sampling.{key}")
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = round(value, 6)
    return found
