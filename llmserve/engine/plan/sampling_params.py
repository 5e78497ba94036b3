"""The sampling parameters of a request. Pure data: validated once, at the edge, and never changed after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal

from ...errors import ConfigError, RequestError
from .grammar_spec import Grammar

MAX_TOP_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_TOKEN_IDS = 1024
MAX_BANNED = 512  # sequences, and tokens in each
MAX_LOGIT_BIAS = 16_384  # each costs every step of the whole batch a little
MAX_COUNT = 2**31 - 1  # what is more means no more than this
_COUNTS = ("max_tokens", "top_k", "min_tokens", "n", "logprobs", "prompt_logprobs")
_OPTIONAL = ("max_tokens", "logprobs", "prompt_logprobs")
# Logits stay finite in float32 within these, whatever a temperature makes of them.
_REPETITION_PENALTIES = (1e-4, 1e4)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """The choice of the next token, and the conditions to stop.

    Attributes:
        max_tokens: tokens to generate at most; None means as many as the context holds. 0 only scores the prompt.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_p: keep the smallest set of tokens whose probabilities reach it, in (0, 1].
        top_k: keep the k likeliest tokens; 0 or -1 keeps all.
        min_p: drop tokens below this fraction of the likeliest one's probability, in [0, 1].
        n: completions per prompt.
        seed: makes the tokens reproducible, whatever else is in the batch; any whole number, of which the last 64 bits
            count. None draws a fresh one.
        stop: strings that end the completion and are not part of it.
        stop_token_ids: token ids that end it, beside the model's own end-of-sequence tokens.
        presence_penalty, frequency_penalty: OpenAI's, over generated tokens, in [-2, 2].
        repetition_penalty: CTRL's (Keskar et al. 2019), over prompt and generated tokens, in [1e-4, 1e4]; 1 is off.
        logit_bias: added to the logits of the named token ids, in [-100, 100].
        logprobs: None for none, else how many alternatives to report beside the chosen token's own.
        prompt_logprobs: the same for each of the prompt's tokens but the first.
        ignore_eos: go on past end-of-sequence tokens (benchmarks).
        min_tokens: end-of-sequence tokens cannot be chosen before this many tokens.
        include_stop: have what ended it, a stop string or a token, as part of the text after all.
        banned: sequences of token ids that no answer holds: the last of each is not chosen after the others.
        skip_special_tokens: leave special tokens out of the text, except for `shown_token_ids`.
        grammar: what the completion must be; tokens that lead elsewhere are never chosen. An end-of-sequence token that
            it allows is the end, whatever ignore_eos and min_tokens say.
        pooling: choose no token at all; the answer is one vector of unit length, in the direction of the mean of the
            prompt's normed hidden states or of the last of them.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    n: int = 1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    ignore_eos: bool = False
    min_tokens: int = 0
    include_stop: bool = False
    banned: tuple[tuple[int, ...], ...] = ()
    skip_special_tokens: bool = True
    grammar: Grammar | None = None
    shown_token_ids: tuple[int, ...] = ()
    pooling: Literal["mean", "last"] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(s for s in self.stop if s))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                object.__setattr__(self, name, max(-MAX_COUNT, min(_whole(name, value), MAX_COUNT)))
        if self.seed is not None:
            object.__setattr__(self, "seed", _whole("seed", self.seed))
        least = 1 if self.prompt_logprobs is None else 0
        if self.max_tokens is not None and self.max_tokens < least:
            raise RequestError(f"max_tokens must be at least {least}, got {self.max_tokens}.", param="max_tokens")
        self._within("temperature", 0.0, 1e4)
        self._within("top_p", 0.0, 1.0)
        self._within("min_p", 0.0, 1.0)
        self._within("presence_penalty", -2.0, 2.0)
        self._within("frequency_penalty", -2.0, 2.0)
        if self.top_k < -1:
            raise RequestError(f"top_k must be -1, 0 (both off) or positive, got {self.top_k}.", param="top_k")
        self._within("repetition_penalty", *_REPETITION_PENALTIES)
        if not 1 <= self.n <= 128:
            raise RequestError(f"n must be between 1 and 128, got {self.n}.", param="n")
        if self.min_tokens < 0:
            raise RequestError(f"min_tokens must not be negative, got {self.min_tokens}.", param="min_tokens")
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(self, name)
            if count is not None and not 0 <= count <= MAX_TOP_LOGPROBS:
                raise RequestError(
                    f"at most {MAX_TOP_LOGPROBS} alternatives per token can be reported, got {count}.", param=name
                )
        if len(self.stop) > MAX_STOP_STRINGS:
            raise RequestError(f"at most {MAX_STOP_STRINGS} stop strings, got {len(self.stop)}.", param="stop")
        if self.max_tokens == 0 and self.n != 1:
            raise RequestError(f"A prompt is scored once, so with max_tokens 0 n must be 1, got {self.n}.", param="n")
        if self.pooling is not None and self.n != 1:
            raise RequestError(f"A prompt is pooled once, so n must be 1, got {self.n}.", param="n")
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            raise RequestError(
                f"at most {MAX_STOP_TOKEN_IDS} stop_token_ids, got {len(self.stop_token_ids)}.", param="stop_token_ids"
            )
        for token_id in self.stop_token_ids:
            if not isinstance(token_id, Integral) or token_id < 0:
                raise RequestError(
                    f"stop_token_ids must be whole numbers from 0 on, got {_shown(token_id)}.", param="stop_token_ids"
                )
        if max(len(self.banned), *map(len, self.banned), 0) > MAX_BANNED or not all(self.banned):
            raise RequestError(
                f"At most {MAX_BANNED} sequences of 1 to {MAX_BANNED} tokens can be banned.", param="bad_words"
            )
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise RequestError(
                f"logit_bias may name {MAX_LOGIT_BIAS} token ids at most, got {len(self.logit_bias)}.",
                param="logit_bias",
            )
        for token_id, bias in self.logit_bias.items():
            if not isinstance(token_id, Integral) or token_id < 0 or not _is_within(bias, -100.0, 100.0):
                raise RequestError(
                    f"logit_bias maps token ids to values in [-100, 100], got {_shown(token_id)}: {_shown(bias)}.",
                    param="logit_bias",
                )

    def _within(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if not _is_within(value, low, high):
            raise RequestError(f"{name} must be between {low:g} and {high:g}, got {_shown(value)}.", param=name)

    @property
    def needs_every_position(self) -> bool:
        """Whether the model must compute the whole prompt, what the prefix cache knows of it included."""
        return self.pooling == "mean" or self.prompt_logprobs is not None

    @property
    def greedy(self) -> bool:
        return self.temperature < 1e-5


def recommended(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A model's own defaults, held to what holds for a request's. Raises ConfigError that names `source`."""
    try:
        params = SamplingParams(**values)
    except RequestError as error:
        raise ConfigError(f"{source}: {error}") from error
    return {name: getattr(params, name) for name in values}


def _whole(name: str, value: Any) -> int:
    """A whole number, perhaps written as 5.0. Raises RequestError."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, Integral):
        raise RequestError(f"{name} must be a whole number, got {_shown(value)}.", param=name)
    return int(value)


def _is_within(value: Any, low: float, high: float) -> bool:
    return isinstance(value, Real) and bool(low <= value <= high)  # type: ignore[operator]  # NaN is not


def _shown(value: Any) -> str:
    """A value in an error message: Python refuses to write out numbers of thousands of digits."""
    if isinstance(value, int) and value.bit_length() > 1024:
        return f"a number of {value.bit_length()} bits"
    return f"{value!r:.100}"
