"""Log-probabilities as OpenAI's two endpoint families write them down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..engine import TokenLogprob
from ..text.tokenizer import Tokenizer

_FLOOR = -9999.0  # OpenAI's; JSON has no infinity


def chat_logprobs(tokenizer: Tokenizer, chosen: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    """/v1/chat/completions: an object per token, with its bytes; half a character shows as U+FFFD."""
    if chosen is None:
        return None

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        spelt = tokenizer.token_bytes(token_id)
        return {"token": spelt.decode("utf-8", "replace"), "logprob": max(logprob, _FLOOR), "bytes": list(spelt)}

    content = [
        {**entry(token.token_id, token.logprob), "top_logprobs": [entry(*other) for other in token.top]}
        for token in chosen
    ]
    return {"content": content, "refusal": None}


def text_logprobs(tokenizer: Tokenizer, chosen: Sequence[TokenLogprob] | None, offset: int) -> dict[str, Any] | None:
    """/v1/completions: parallel lists. `offset` is where in the text the first token stands."""
    if chosen is None:
        return None
    tokens = [_key(tokenizer.token_bytes(token.token_id)) for token in chosen]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    top = [
        {_key(tokenizer.token_bytes(i)): max(p, _FLOOR) for i, p in (*token.top, (token.token_id, token.logprob))}
        for token in chosen
    ]
    return {
        "tokens": tokens,
        "token_logprobs": [max(token.logprob, _FLOOR) for token in chosen],
        "top_logprobs": top,
        "text_offset": offsets,
    }


def _key(spelt: bytes) -> str:
    """A token as text, or its bytes in OpenAI's notation, so that two halves of characters are not one key."""
    try:
        return spelt.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelt)
