"""The state that every endpoint shares: engine, tokenizer, template, model, settings, metrics, stored responses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, TypeVar

from fastapi import Depends, Request

from ... import __version__
from ...config import ServerConfig
from ...engine import AsyncEngine, SamplingParams
from ...errors import ContextLengthError, ModelNotFoundError, RequestError
from ...text.chat_template import ChatTemplate
from ...text.parsers.formats import format_named, format_of
from ...text.parsers.reasoning import tags_of
from ...text.tokenizer import Tokenizer
from ..edge.gate import RequestGate
from ..edge.metrics import Metrics
from .response_store import ResponseStore

S = TypeVar("S")
T = TypeVar("T")

_CHARS_PER_TOKEN = 16  # of the context: shorter texts are tokenized before anybody asks how many tokens they have
_MAX_BAD_WORDS, _MAX_BAD_CHARS = 256, 256
_CHARS_TOGETHER = 1 << 16  # of short texts in one go of a thread


@dataclass(frozen=True)
class ServedModel:
    """The model as clients see it.

    Attributes:
        id: its name; `aliases` are further names that requests may use.
        max_model_len: tokens that a prompt and its completion may have together.
        created: Unix seconds.
        sampling_defaults: SamplingParams fields for requests that leave them out (`config.sampling_defaults`).
    """

    id: str
    max_model_len: int
    aliases: tuple[str, ...] = ()
    created: int = field(default_factory=lambda: int(time.time()))
    owned_by: str = "llmserve"
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)


class Serving:
    """One app's engine, tokenizer, template, model, settings, metrics and stored responses.

    Attributes:
        tool_call_format, reasoning_tags: how the model writes calls and reasoning, by its template or the settings.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        tokenizer: Tokenizer,
        chat_template: ChatTemplate,
        model: ServedModel,
        config: ServerConfig,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.model = model
        self.config = config
        tokens, source = tokenizer.added_tokens, chat_template.source
        named = config.tool_call_format
        self.tool_call_format = format_of(source, tokens) if named is None else format_named(named)
        self.reasoning_tags = tags_of(source, tokens)
        self.metrics = Metrics(engine, model.id)
        self.gate = RequestGate(engine)
        self.responses = ResponseStore(config.stored_responses, config.stored_responses_memory)
        self.fingerprint = f"llmserve-{__version__}-{model.id}"
        # Its size bounds how many prompts are tokenized at the same time.
        self._threads = ThreadPoolExecutor(config.tokenizer_threads, thread_name_prefix="llmserve-text")

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Run work on text beside the event loop, which long prompts would block."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    async def each_in_thread(self, function: Callable[[S], T], items: Sequence[S], size: Callable[[S], int]) -> list[T]:
        """Run work on each of many texts. Between them others have their turn, and who has left is noticed."""
        results: list[T] = []
        start = 0
        while start < len(items):
            stop, total = start + 1, size(items[start])
            while stop < len(items) and (total := total + size(items[stop])) <= _CHARS_TOGETHER:
                stop += 1
            results += await self.in_thread(partial(_each, function, items[start:stop]))
            start = stop
        return results

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def check_model(self, name: str | None) -> None:
        """Refuse the name of a model that is not served here; no name means the one that is."""
        if name is not None and not self.config.any_model_name and name not in (self.model.id, *self.model.aliases):
            raise ModelNotFoundError(f"The model {name!r} is not served here; {self.model.id!r} is.")

    def check_prompt(self, ids: list[int], param: str, *, answered: bool = True) -> None:
        """Refuse a prompt that is empty, has unknown tokens or leaves no room for an answer, if one is to come."""
        if not ids:
            raise RequestError("The prompt is empty.", param=param)
        self.check_ids(ids, param)
        if len(ids) + answered > self.model.max_model_len:
            why = ", which leaves no room for an answer" if answered else ""
            raise ContextLengthError(
                f"This model's maximum context length is {self.model.max_model_len} tokens, but the {param} came to "
                f"{len(ids)}{why}. Please make the {param} shorter.",
                param=param,
            )

    def encode(self, text: str, param: str, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a text that may fit the context. Takes time with long ones; raises RequestError."""
        self.check_length(text, param)
        return self.tokenizer.encode(text, add_special_tokens)

    def check_length(self, text: str, param: str) -> None:
        """Refuse a text of which its bytes alone say that it has too many tokens."""
        context = self.model.max_model_len
        if len(text) > _CHARS_PER_TOKEN * context and (least := self.tokenizer.least_tokens(text, context)) > context:
            raise ContextLengthError(
                f"This model's maximum context length is {context} tokens, but the {param} has {len(text)} characters, "
                f"which come to at least {least}. Please make the {param} shorter.",
                param=param,
            )

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        """Refuse token ids that no token has."""
        if ids and not 0 <= min(ids) <= max(ids) < self.tokenizer.vocab_size:
            raise RequestError(f"{param} has token ids outside of 0 to {self.tokenizer.vocab_size - 1}.", param=param)

    def truncated(self, ids: list[int], count: int | None, *, answered: bool = True) -> list[int]:
        """The last `count` tokens of a prompt: all for None, for -1 as many as leave room for an answer, if one is to
        come. Raises RequestError for a number of tokens that cannot be."""
        most = self.model.max_model_len - answered
        if count is None:
            return ids
        if count != -1 and not 1 <= count <= most:
            raise RequestError(
                f"truncate_prompt_tokens must be -1 or between 1 and {most}, got {count}.",
                param="truncate_prompt_tokens",
            )
        return ids[-(most if count == -1 else count) :]

    def with_banned(self, params: SamplingParams, words: Sequence[str] | None) -> SamplingParams:
        """The same, less answers that hold one of these words, at a text's beginning or after a space."""
        words = words or ()
        if len(words) > _MAX_BAD_WORDS or any(not 0 < len(word) <= _MAX_BAD_CHARS for word in words):
            raise RequestError(
                f"bad_words must hold at most {_MAX_BAD_WORDS} words of 1 to {_MAX_BAD_CHARS} characters.",
                param="bad_words",
            )
        spelt = [self.tokenizer.encode(form, False) for word in words for form in (word, " " + word.lstrip())]
        banned = tuple(dict.fromkeys(tuple(ids) for ids in spelt if ids))
        return replace(params, banned=banned) if banned else params

    def limited(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> SamplingParams:
        """Refuse what the settings do not allow one request; what it leaves open is bounded by them too."""
        config = self.config
        asked = (
            ("prompt", "prompts", len(prompts), config.max_prompts),
            ("n", "choices per prompt", params.n, config.max_n),
            ("stop", "stop strings", len(params.stop), config.max_stop_strings),
            ("stop", "characters in a stop string", max(map(len, params.stop), default=0), config.max_stop_chars),
            ("max_tokens", "tokens", params.max_tokens or 0, config.max_output_tokens),
        )
        for param, what, count, limit in asked:
            if limit is not None and count > limit:
                raise RequestError(
                    f"This server allows at most {limit} {what}, and {count} were asked for.", param=param
                )
        sequences, capacity = len(prompts) * params.n, self.engine.capacity
        if params.pooling is None and sequences > capacity:
            raise RequestError(
                f"This server runs and queues at most {capacity} sequences, and {len(prompts)} prompts with "
                f"n={params.n} are {sequences}.",
                param="n",
            )
        if params.max_tokens is None and config.max_output_tokens is not None and params.pooling is None:
            return replace(params, max_tokens=config.max_output_tokens)
        return params


def _each(function: Callable[[S], T], items: Sequence[S]) -> list[T]:
    return [function(item) for item in items]


def _serving(request: Request) -> Serving:
    serving: Serving = request.app.state.serving
    return serving


ServingDep = Annotated[Serving, Depends(_serving)]
