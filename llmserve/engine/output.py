"""What leaves the engine: frozen records, one per step and request. Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The natural-log probability of a chosen token and of the likeliest alternatives, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class SampledToken:
    """What the executor chose for one sequence in one step."""

    token_id: int
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """What one step added to one choice of a request.

    `text` may be empty while a character or a possible stop string is incomplete; `token_ids` and `logprobs` are
    those of this delta alone. `stop_reason` is the stop string or token id that ended the choice, if one did.
    """

    index: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """One step's news of a request. `finished` is true once every choice has a finish reason."""

    request_id: str
    deltas: tuple[ChoiceDelta, ...]
    num_prompt_tokens: int
    num_cached_tokens: int
    finished: bool
