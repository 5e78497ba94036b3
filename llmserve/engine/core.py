"""The engine core: a scheduler, an executor and the text of each sequence. It steps when it is told to.

Not thread-safe: one thread builds it, steps it, adds to it and aborts in it. `async_engine.py` gives it that thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, get_args

from ..errors import ConfigError, RequestError, is_exit
from .detokenize import Detokenizer, Tokenizer
from .plan.grammar_spec import CompiledGrammar
from .plan.outputs import ChoiceDelta, FinishReason, Pooled, RequestOutput, SampledToken, Scored
from .plan.sampling_params import SamplingParams
from .plan.scheduler import Sampled, Scheduler, SchedulerOutput
from .plan.scheduler_config import SchedulerConfig
from .plan.sequence import Request, Sequence

logger = logging.getLogger(__name__)


class Executor(Protocol):
    """Computes plans; the only holder of devices.

    Attributes:
        num_pages, page_size: the KV cache. Pages are numbered from 0 and all of them are the scheduler's to give.
        max_model_len: tokens in a sequence, prompt included.
        vocab_size: token ids are below it.
    """

    num_pages: int
    page_size: int
    max_model_len: int
    vocab_size: int

    def execute(self, plan: SchedulerOutput, /) -> Mapping[int, Sampled]:
        """Compute a plan (never an empty one). Maps seq_id → token or vector, or → why there is none, for all that
        sample: those whose last known token is in the plan.

        An exception means that the engine as a whole cannot go on.
        """
        ...

    def close(self) -> None:
        """Give the devices back."""
        ...


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Figures of an engine: what it holds now, and what it has done since it started.

    Attributes:
        num_running, num_waiting: sequences.
        num_pages, num_available_pages: KV pages, and those of them that a new sequence could have.
        prefix_queries, prefix_hits: prompt tokens looked up in the prefix cache, and those found there.
        num_prompt_tokens, num_generated_tokens: of accepted requests; a prompt counts once, whatever its n.
        num_preemptions: sequences that had to start over because pages had run out.
        finished: choices by finish reason.
    """

    num_running: int
    num_waiting: int
    num_pages: int
    num_available_pages: int
    prefix_queries: int
    prefix_hits: int
    num_prompt_tokens: int
    num_generated_tokens: int
    num_preemptions: int
    finished: Mapping[str, int]

    @property
    def kv_cache_usage(self) -> float:
        """The share of the pages that sequences hold."""
        return 1 - self.num_available_pages / self.num_pages if self.num_pages else 0.0


class EngineCore:
    """Requests in, outputs out, one step at a time."""

    def __init__(
        self,
        executor: Executor,
        config: SchedulerConfig,
        tokenizer: Tokenizer | None,
        eos_token_ids: Collection[int] = (),
    ) -> None:
        """Without a tokenizer the outputs hold tokens and no text, and stop strings are refused."""
        for name in ("num_pages", "page_size"):
            if getattr(config, name) != getattr(executor, name):
                raise ConfigError(f"{name} is {getattr(config, name)}, but the executor has {getattr(executor, name)}.")
        if config.max_model_len > executor.max_model_len:
            raise ConfigError(
                f"max_model_len is {config.max_model_len}, but the compiled model takes {executor.max_model_len}."
            )
        self.executor = executor
        self.scheduler = Scheduler(config, eos_token_ids)
        self._tokenizer = tokenizer
        self._detokenizers: dict[int, Detokenizer] = {}
        self._next_seq_id = 0
        self._num_prompt_tokens = 0
        self._num_generated_tokens = 0
        self._finished: dict[str, int] = dict.fromkeys(get_args(FinishReason), 0)

    @property
    def max_model_len(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self.scheduler.max_model_len

    def has_work(self) -> bool:
        return self.scheduler.has_work()

    def add_request(
        self,
        request_id: str,
        prompt_ids: Collection[int],
        params: SamplingParams,
        grammar: CompiledGrammar | None = None,
    ) -> None:
        """Queue a request, or raise the RequestError that says why not. `grammar` is `params.grammar`, compiled."""
        vocab = self.executor.vocab_size
        if prompt_ids and not 0 <= min(prompt_ids) <= max(prompt_ids) < vocab:
            raise RequestError(f"The prompt holds token ids outside the vocabulary of {vocab}.", param="prompt")
        for name, ids in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
            if ids and not 0 <= min(ids) <= max(ids) < vocab:
                raise RequestError(f"{name} holds token ids outside the vocabulary of {vocab}.", param=name)
        banned = [token_id for sequence in params.banned for token_id in sequence]
        if banned and not 0 <= min(banned) <= max(banned) < vocab:
            raise RequestError(f"bad_words holds tokens outside the vocabulary of {vocab}.", param="bad_words")
        if params.stop and self._tokenizer is None:
            raise RequestError("Stop strings need a tokenizer, and this engine has none.", param="stop")
        if params.grammar is not None and grammar is None:
            raise RequestError("This engine cannot keep to grammars.", param=params.grammar.param)
        request = Request(request_id, list(prompt_ids), params, self._next_seq_id, grammar)
        detokenizers = {s.seq_id: made for s in request.sequences if (made := self._detokenizer(params)) is not None}
        self.scheduler.add(request)  # last of what may fail
        self._detokenizers |= detokenizers
        self._next_seq_id += params.n
        self._num_prompt_tokens += len(request.prompt_ids)

    def abort(self, request_id: str) -> RequestOutput | None:
        """End a request and free its pages now; return its last output, or None if the id is unknown."""
        outputs = self._emit((sequence, None) for sequence in self.scheduler.abort(request_id))
        return outputs[0] if outputs else None

    def step(self) -> list[RequestOutput]:
        """Compute the next tokens of the sequences that are due. At most one output per request."""
        return self.compute(self.plan())

    def plan(self) -> SchedulerOutput:
        """The sequences that are due. `compute` must follow; nothing may change the requests in between."""
        return self.scheduler.schedule()

    def compute(self, plan: SchedulerOutput) -> list[RequestOutput]:
        """The other part of `step`."""
        if not plan.scheduled:
            return []
        if plan.admitted:
            _note_first_computation(plan.admitted)
        sampled = self.executor.execute(plan)
        return self._emit(self.scheduler.update(plan, sampled))

    def stats(self) -> EngineStats:
        scheduler = self.scheduler
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            num_pages=scheduler.pool.num_pages,
            num_available_pages=scheduler.pool.num_available,
            prefix_queries=scheduler.prefix_queries,
            prefix_hits=scheduler.prefix_hits,
            num_prompt_tokens=self._num_prompt_tokens,
            num_generated_tokens=self._num_generated_tokens,
            num_preemptions=scheduler.num_preemptions,
            finished=dict(self._finished),
        )

    def close(self) -> None:
        self.executor.close()

    def _detokenizer(self, params: SamplingParams) -> Detokenizer | None:
        if self._tokenizer is None:
            return None
        stream = self._tokenizer.stream(params.skip_special_tokens, shown=params.shown_token_ids, continues=True)
        return Detokenizer(stream, params.stop, params.min_tokens, params.include_stop)

    def _emit(self, news: Iterable[tuple[Sequence, SampledToken | Pooled | Scored | None]]) -> list[RequestOutput]:
        deltas: dict[Request, list[ChoiceDelta]] = {}
        for sequence, result in news:
            deltas.setdefault(sequence.request, []).append(self._delta(sequence, result))
        return [
            RequestOutput(
                request_id=request.request_id,
                deltas=tuple(own),
                num_prompt_tokens=len(request.prompt_ids),
                num_cached_tokens=request.sequences[0].num_cached_tokens,
                finished=request.finished,
                scheduled_at=request.scheduled_at,
            )
            for request, own in deltas.items()
        ]

    def _delta(self, sequence: Sequence, result: SampledToken | Pooled | Scored | None) -> ChoiceDelta:
        text, detokenizer = "", self._detokenizers.get(sequence.seq_id)
        token = result if isinstance(result, SampledToken) else None
        token_ids = (token.token_id, *token.forced) if token is not None else ()
        if detokenizer is not None:
            try:
                text, token_ids = self._spell(sequence, detokenizer, token_ids)
            except BaseException as error:  # of this sequence's tokens; the others go on
                if is_exit(error):
                    raise
                logger.exception("tokens could not be spelt")
                self.scheduler.fail(sequence, f"The answer's tokens cannot be spelt: {type(error).__name__}: {error}.")
        if sequence.finish_reason is not None:
            self._finished[sequence.finish_reason] += 1
            self._detokenizers.pop(sequence.seq_id, None)
        self._num_generated_tokens += len(token_ids)
        return ChoiceDelta(
            index=sequence.index,
            token_ids=token_ids,
            text=text,
            logprobs=(token.logprob,) if token is not None and token.logprob is not None else None,
            finish_reason=sequence.finish_reason,
            stop_reason=sequence.stop_reason,
            error=sequence.error,
            vector=result.vector if isinstance(result, Pooled) else None,
            prompt_logprobs=result.prompt_logprobs if isinstance(result, (SampledToken, Scored)) else None,
        )

    def _spell(
        self, sequence: Sequence, detokenizer: Detokenizer, token_ids: tuple[int, ...]
    ) -> tuple[str, tuple[int, ...]]:
        """The text of new tokens, and those of them that come before a stop string has ended the sequence."""
        text = ""
        stops = sequence.finish_reason == "stop" and not sequence.request.params.include_stop
        # A token that stops is not part of the text.
        for i, token_id in enumerate(token_ids[:-1] if stops else token_ids):
            text += detokenizer.push(token_id)
            if detokenizer.stop is not None:
                token_ids = token_ids[: i + 1]
                self.scheduler.finish(sequence, "stop", detokenizer.stop)
                break
        if sequence.finish_reason is not None:
            text += detokenizer.flush()
        if detokenizer.stop is not None and sequence.finish_reason == "length":
            self.scheduler.finish(sequence, "stop", detokenizer.stop)
        return text, token_ids


def _note_first_computation(admitted: Iterable[Sequence]) -> None:
    """A request's waiting is over when any of its sequences is first computed."""
    now = time.monotonic()
    for sequence in admitted:
        if sequence.request.scheduled_at is None:
            sequence.request.scheduled_at = now
