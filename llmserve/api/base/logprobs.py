"""Log-probabilities in the two shapes of OpenAI's endpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...engine import SamplingParams, TokenLogprob
from ...text.tokenizer import Tokenizer

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


class TextLogprobLists:
    """/v1/completions: parallel lists, piece by piece; one for each choice, whose text it measures."""

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams) -> None:
        self._tokenizer, self._params = tokenizer, params
        self._length = 0  # of the text so far
        self._stream = tokenizer.stream(params.skip_special_tokens, shown=params.shown_token_ids, continues=True)

    def echo(self, text: str, ids: Sequence[int], scores: Sequence[TokenLogprob]) -> dict[str, list[Any]]:
        """Of a prompt that is given back before the rest. Nothing stands before its first token, which has none."""
        answers = self._stream
        self._stream = self._tokenizer.stream()
        lists = self._lists([(ids[0], None), *((score.token_id, score) for score in scores)])
        self._stream, self._length = answers, len(text)
        return lists

    def of(self, chosen: Sequence[TokenLogprob]) -> dict[str, list[Any]]:
        """Of the next tokens."""
        return self._lists([(token.token_id, token) for token in chosen])

    def _lists(self, tokens: Sequence[tuple[int, TokenLogprob | None]]) -> dict[str, list[Any]]:
        lists: dict[str, list[Any]] = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
        for token_id, scored in tokens:
            lists["tokens"].append(self._key(token_id))
            lists["text_offset"].append(self._length)
            self._length += len(self._stream.step(token_id))
            lists["token_logprobs"].append(None if scored is None else max(scored.logprob, _FLOOR))
            # The chosen one last, so that it stands there whatever else is spelt like it.
            top = None if scored is None else (*scored.top, (token_id, scored.logprob))
            lists["top_logprobs"].append(top and {self._key(i): max(p, _FLOOR) for i, p in top})
        return lists

    def _key(self, token_id: int) -> str:
        return _key(self._tokenizer.token_bytes(token_id))


def _key(spelt: bytes) -> str:
    """A token as text, or its bytes in OpenAI's notation, so that two halves of characters are not one key."""
    try:
        return spelt.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelt)
