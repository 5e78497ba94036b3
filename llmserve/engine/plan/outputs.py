"""Records that leave the engine, one per step and request. Pure data that does not change.

Those that are made for every token are tuples, which take a fifth of the time of frozen dataclasses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The natural-log probability of a chosen token and of the likeliest alternatives, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class SampledToken(NamedTuple):
    """A token chosen for one sequence in one step, and the tokens that its grammar forces to follow.

    `prompt_logprobs` come with the first token of a request that asked for them: see `Scored`.
    """

    token_id: int
    logprob: TokenLogprob | None = None
    forced: tuple[int, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True, slots=True)
class Pooled:
    """The result of a prompt that is pooled: its vector of unit length, as little-endian float32."""

    vector: bytes


@dataclass(frozen=True, slots=True)
class Scored:
    """The result of a prompt that is only scored: a log-probability for each of its tokens but the first."""

    prompt_logprobs: tuple[TokenLogprob, ...]


class ChoiceDelta(NamedTuple):
    """The addition of one step to one choice of a request.

    `text` may be empty while a character or a possible stop string is incomplete; `token_ids` and `logprobs` are
    those of this delta alone. `stop_reason` is the stop string or stop token id that ended the choice, if one did (None
    at the model's own end of sequence); `error` says why, where `finish_reason` is "error". `vector` is what a request
    that pools gets instead of tokens, once: little-endian float32. `prompt_logprobs` are in choice 0's first delta, if
    they were asked for: one for each of the prompt's tokens but the first.
    """

    index: int  # type: ignore[assignment]  # instead of tuple's method
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    vector: bytes | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None


class RequestOutput(NamedTuple):
    """One step's news of a request. `finished` is true once every choice has a finish reason.

    `scheduled_at` is when the engine first computed something for it, in monotonic seconds.
    """

    request_id: str
    deltas: tuple[ChoiceDelta, ...]
    num_prompt_tokens: int
    num_cached_tokens: int
    finished: bool
    scheduled_at: float | None = None


def fold(outputs: Sequence[RequestOutput]) -> RequestOutput:
    """Join consecutive outputs of one request (at least one) into one, a delta per choice in the order of first news.

    Folding the whole stream gives the reply that is not streamed.
    """
    if len(outputs) == 1:
        return outputs[0]
    by_index: dict[int, list[ChoiceDelta]] = {}
    for output in outputs:
        for delta in output.deltas:
            by_index.setdefault(delta.index, []).append(delta)
    last = outputs[-1]
    deltas = tuple(_join(deltas) for deltas in by_index.values())
    return last._replace(deltas=deltas)


def _join(deltas: list[ChoiceDelta]) -> ChoiceDelta:
    if len(deltas) == 1:
        return deltas[0]
    last = deltas[-1]
    asked = any(d.logprobs is not None for d in deltas)
    return ChoiceDelta(
        index=last.index,
        token_ids=tuple(t for d in deltas for t in d.token_ids),
        text="".join(d.text for d in deltas),
        logprobs=tuple(p for d in deltas for p in d.logprobs or ()) if asked else None,
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        error=last.error,
        vector=last.vector,
        prompt_logprobs=deltas[0].prompt_logprobs,
    )
