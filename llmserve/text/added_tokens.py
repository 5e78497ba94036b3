"""Tokens that a checkpoint names beside tokenizer.json: in tokenizer_config.json, special_tokens_map.json and
added_tokens.json. Fine-tunes often add theirs only there, and what is special is said there last.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from ..errors import CheckpointError

_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
_MAX_ID = 1 << 24


def complete(
    backend: tokenizers.Tokenizer, settings: Mapping[str, Any], added: Mapping[str, Any], path: Path
) -> tokenizers.Tokenizer:
    """The tokenizer with all tokens that `settings` (tokenizer_config.json over special_tokens_map.json) and `added`
    (added_tokens.json) name, under the ids that they have there.

    Raises CheckpointError for entries that are no tokens, and for an id that is another token's.
    """
    wanted = _listed(added, path) | _decoder(settings.get("added_tokens_decoder"), path)
    missing = {i: token.content for i, token in wanted.items() if backend.token_to_id(token.content) is None}
    if missing:
        backend = _extended(backend, missing, path)
    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    tokens = [token for _, token in sorted(wanted.items(), key=lambda item: item[0])]
    listed = {token.content for token in tokens} | known.keys()
    for text in _named(settings):
        if text not in listed and backend.token_to_id(text) is not None:
            tokens.append(AddedToken(text, special=True, normalized=False))
    changed = [token for token in tokens if _flags(token) != _flags(known.get(token.content))]
    for token in changed:
        token.special = token.special or token.content in _named(settings)
    backend.add_tokens(changed)
    return backend


def _listed(added: Mapping[str, Any], path: Path) -> dict[int, AddedToken]:
    """added_tokens.json: text → id, and no more of it."""
    return {_id(i, path / "added_tokens.json"): AddedToken(text, normalized=False) for text, i in added.items() if text}


def _decoder(entries: Any, path: Path) -> dict[int, AddedToken]:
    """tokenizer_config.json's added_tokens_decoder: id → text and flags."""
    file, found = path / "tokenizer_config.json", {}
    if not isinstance(entries, dict | None):
        raise CheckpointError(f"{file}: 'added_tokens_decoder' must be an object.")
    for key, entry in (entries or {}).items():
        text = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(text, str):
            raise CheckpointError(f"{file}: 'added_tokens_decoder' holds no token at {key!r:.20}.")
        flags = {name: entry.get(name, False) is True for name in _FLAGS}
        if text:
            found[_id(key, file)] = AddedToken(text, **flags)
    return found


def _id(value: Any, file: Path) -> int:
    if not (isinstance(value, int) or (isinstance(value, str) and value.isdecimal() and len(value) < 9)):
        raise CheckpointError(f"{file}: {value!r:.20} is no token's id.")
    if not 0 <= int(value) < _MAX_ID:
        raise CheckpointError(f"{file}: {value!r:.20} is no token's id.")
    return int(value)


def _named(settings: Mapping[str, Any]) -> list[str]:
    """The texts of `eos_token` and its like, and of the lists of others."""
    entries = [value for name, value in settings.items() if name.endswith("_token")]
    for name in ("additional_special_tokens", "extra_special_tokens"):
        value = settings.get(name)
        entries += value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []
    texts = (entry.get("content") if isinstance(entry, dict) else entry for entry in entries)
    return list(dict.fromkeys(text for text in texts if isinstance(text, str) and text))


def _flags(token: AddedToken | None) -> tuple[bool, ...] | None:
    return None if token is None else tuple(getattr(token, name) for name in _FLAGS)


def _extended(backend: tokenizers.Tokenizer, missing: Mapping[int, str], path: Path) -> tokenizers.Tokenizer:
    """The tokenizer with these texts in its vocabulary: the package gives an added token the next free id, and one that
    the vocabulary has, its own."""
    state = json.loads(backend.to_str())
    vocab = state["model"].get("vocab")
    for i, text in missing.items():
        if (other := backend.id_to_token(i)) is not None:
            raise CheckpointError(f"{path} has two tokens with the id {i}: {other!r:.40} and {text!r:.40}.")
    for i, text in sorted({**{entry["id"]: entry["content"] for entry in state["added_tokens"]}, **missing}.items()):
        if isinstance(vocab, dict):
            vocab.setdefault(text, i)
        elif isinstance(vocab, list) and len(vocab) <= i:
            if len(vocab) < i:
                raise CheckpointError(
                    f"{path / 'tokenizer.json'}: the token {text!r:.40} has no place with the id {i}."
                )
            vocab.append([text, 0.0])
    return tokenizers.Tokenizer.from_str(json.dumps(state))
