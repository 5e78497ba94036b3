"""Bodies of requests, as OpenAI's clients send them, and the sampling parameters that they ask for.

Fields that llmserve does not know are ignored; fields that it knows and cannot honour are refused with a sentence,
since an answer that silently lacks what was asked for is worse than none. null always means the default.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
)

from ...engine import MAX_LOGIT_BIAS, Grammar, SamplingParams
from ...errors import RequestError
from .structured import GRAMMAR_FIELDS, requested_grammar

logger = logging.getLogger(__name__)

_LEGACY_MAX_TOKENS = 16  # what OpenAI's /v1/completions generates unless told otherwise
_MAX_PROMPTS = 1024
_SAMPLING_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "n",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "stop_token_ids",
    "ignore_eos",
    "min_tokens",
    "skip_special_tokens",
)
# Accepted and without effect here: hints and book-keeping.
_WITHOUT_EFFECT = (
    "metadata",
    "user",
    "store",
    "service_tier",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "verbosity",
)
# What would change the answer and cannot be had; beside null, false and nothing, these values do not ask for it.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "functions": (),
    "function_call": ("none",),
    "audio": (),
    "modalities": (["text"],),
    "web_search_options": (),
    "prompt_logprobs": (),
    "prompt_embeds": (),
    "mcp_servers": (),
    "use_beam_search": (),
    "suffix": (),
    "echo": (),
    "chat_template": (),
    "allowed_token_ids": (),
    "logits_processors": (),
    "logit_processors": (),
    "custom_logit_processor": (),
    "lora_path": (),
    "spaces_between_special_tokens": (True,),
    "return_tokens_as_token_ids": (),
    "include_reasoning": (True,),
    "mm_processor_kwargs": (),
}
# Not of other endpoints' own, but of use there too: they pass on what they are sent of these.
PASSED_ON = (
    *("top_k", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias"),
    *("stop_token_ids", "min_tokens", "ignore_eos", "skip_special_tokens", "chat_template_kwargs", "bad_words"),
    *("include_stop_str_in_output", "truncate_prompt_tokens", *GRAMMAR_FIELDS, *UNSUPPORTED),
)
_ASKS_ANYWAY = ("spaces_between_special_tokens", "include_reasoning")  # by false


T = TypeVar("T")

MAX_MESSAGES = 16_384  # and as many parts in each
# A list of which the first mistake is told: a million of them would take gigabytes.
Items = Annotated[list[T], Field(fail_fast=True)]
Messages = Annotated[list[T], Field(fail_fast=True, max_length=MAX_MESSAGES)]


def _kind_of_prompts(value: Any) -> str:
    """Which of `Prompts` to read a value as, by its first item: each on trial would take seconds for long lists."""
    if not isinstance(value, list):
        return "str"
    first = value[0] if value else ""
    return "list[list[int]]" if isinstance(first, list) else "list[str]" if isinstance(first, str) else "list[int]"


Prompts = Annotated[
    Annotated[str, Tag("str")]
    | Annotated[Items[str], Tag("list[str]")]
    | Annotated[Items[int], Tag("list[int]")]
    | Annotated[Items[Items[int]], Tag("list[list[int]]")],
    Discriminator(_kind_of_prompts),
]


def _of_few(value: Any) -> Any:
    """Before its entries are looked at one by one."""
    if isinstance(value, dict) and len(value) > MAX_LOGIT_BIAS:
        raise ValueError(f"{MAX_LOGIT_BIAS} token ids at most, got {len(value)}")
    return value


def one_or_many(prompts: str | list[str] | list[int] | list[list[int]], param: str) -> list[str | list[int]]:
    """The prompts that a field holds, each a text or token ids. Raises RequestError for none, and for too many."""
    if isinstance(prompts, str):
        return [prompts]
    if prompts and isinstance(prompts[0], int):
        return [prompts]  # type: ignore[list-item]
    if not 0 < len(prompts) <= _MAX_PROMPTS:
        raise RequestError(f"{param} must hold 1 to {_MAX_PROMPTS} prompts, not {len(prompts)}.", param=param)
    return list(prompts)  # type: ignore[arg-type]


_INSTEAD = {
    "functions": "tools",
    "function_call": "tool_choice",
    "allowed_token_ids": "logit_bias or a grammar",
}


class StreamOptions(BaseModel):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Generating(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | Items[str] | None = None
    stop_token_ids: Items[int] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Annotated[dict[int, float], BeforeValidator(_of_few)] | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    bad_words: Items[str] | None = None
    include_stop_str_in_output: bool | None = None
    truncate_prompt_tokens: int | None = None
    return_token_ids: bool | None = None
    response_format: dict[str, Any] | None = None

    def check_supported(self) -> None:
        """Raise RequestError for what is asked and cannot be done; log what is not understood."""
        extra = self.model_extra or {}
        for name, neutral in UNSUPPORTED.items():
            value = extra.get(name)
            nothing = value is None or value in neutral or (not value and name not in _ASKS_ANYWAY)
            if not nothing:
                hint = f": send {_INSTEAD[name]}" if name in _INSTEAD else ""
                raise RequestError(f"{name} is not supported{hint}.", param=name, code="unsupported_parameter")
        unknown = sorted(extra.keys() - {*_WITHOUT_EFFECT, *UNSUPPORTED, *GRAMMAR_FIELDS})
        if unknown:
            logger.debug("ignored unknown request fields: %s", ", ".join(unknown))

    def grammar(self) -> Grammar | None:
        """The grammar of the answer, if the request asks for one."""
        return requested_grammar({**(self.model_extra or {}), "response_format": self.response_format})

    def _sampling(
        self,
        defaults: Mapping[str, float],
        max_tokens: int | None,
        logprobs: int | None,
        prompt_logprobs: int | None = None,
    ) -> SamplingParams:
        given = {name: value for name in _SAMPLING_FIELDS if (value := getattr(self, name)) is not None}
        if max_tokens == -1:  # as llama.cpp and others have it
            max_tokens = None
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        given["include_stop"] = bool(self.include_stop_str_in_output)
        settings: dict[str, Any] = {**defaults, **given, "stop": stop, "logprobs": logprobs, "max_tokens": max_tokens}
        return SamplingParams(**settings, grammar=self.grammar(), prompt_logprobs=prompt_logprobs)


class Message(BaseModel):
    """One message of a chat. What else it holds (name, tool_call_id, reasoning …) goes to the template as it is."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Messages[str | dict[str, Any]] | None = None
    tool_calls: Items[dict[str, Any]] | None = None


class ChatRequest(Generating):
    """The body of POST /v1/chat/completions."""

    messages: Messages[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: Items[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    documents: Items[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> ChatRequest:
        """A chat translated from another endpoint's body. Raises RequestError where that made no valid chat."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            path = ".".join(map(str, first["loc"]))
            raise RequestError(f"{path}: {first['msg'].removeprefix('Value error, ')}.", param=path) from error

    def check_supported(self) -> None:
        super().check_supported()
        if not self.messages:
            raise RequestError("messages must hold at least one message.", param="messages")
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs to be true.", param="top_logprobs")

    def sampling(self, defaults: Mapping[str, float]) -> SamplingParams:
        """The sampling parameters of this request, over a model's defaults."""
        max_tokens = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return self._sampling(defaults, max_tokens, (self.top_logprobs or 0) if self.logprobs else None)

    def template_variables(self) -> dict[str, Any]:
        """Variables of the chat template beside the messages."""
        effort: dict[str, Any] = {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        if self.reasoning_effort == "none":
            effort["enable_thinking"] = False  # where a template knows on and off, and no degrees
        return {**effort, **(self.chat_template_kwargs or {})}


class CompletionRequest(Generating):
    """The body of POST /v1/completions."""

    prompt: Prompts
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0)
    best_of: int | None = None
    suffix: str | None = None
    add_special_tokens: bool | None = None

    def check_supported(self) -> None:
        super().check_supported()
        if self.best_of not in (None, 1, self.n):
            raise RequestError("best_of is not supported, only as many as n.", param="best_of")
        if self.suffix and self.scores_prompt:
            raise RequestError("With a suffix, echo cannot be had together with logprobs.", param="suffix")

    @property
    def scores_prompt(self) -> bool:
        """Whether the prompt's own log-probabilities are wanted."""
        return bool(self.echo) and self.logprobs is not None

    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or token ids."""
        return one_or_many(self.prompt, "prompt")

    def sampling(self, defaults: Mapping[str, float]) -> SamplingParams:
        """The sampling parameters of this request, over a model's defaults."""
        max_tokens = _LEGACY_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        scores = (self.logprobs or 0) if self.scores_prompt or max_tokens == 0 else None
        return self._sampling(defaults, max_tokens, self.logprobs, scores)
