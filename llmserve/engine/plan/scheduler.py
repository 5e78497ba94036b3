"""The scheduler: which tokens of which sequences the model computes next, and what came back. Arithmetic only.

There is no prefill and no decode here: a sequence has tokens, some of them computed, and catches up. A plan is
{sequence: number of tokens}, within a budget of tokens, pages and sequences. The model, text and clients are elsewhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from typing import NamedTuple

from ...errors import ContextLengthError, EngineError, QueueFullError, RequestError
from .outputs import FinishReason, Pooled, SampledToken, Scored
from .page_pool import PagePool
from .prefix_cache import ROOT, PrefixCache
from .scheduler_config import SchedulerConfig
from .sequence import Request, Sequence, Status

Sampled = SampledToken | Pooled | Scored | EngineError
"""The executor's report on a sequence: a token, a pooled or scored result, or an error, which ends it alone."""


class ScheduledSequence(NamedTuple):
    """The next `num_tokens` uncomputed tokens of a sequence. Its pages have room for them."""

    sequence: Sequence
    num_tokens: int

    @property
    def samples(self) -> bool:
        """Whether a token follows, i.e. the last known one is among these. Holds until the plan is booked."""
        return self.sequence.num_computed_tokens + self.num_tokens == len(self.sequence.token_ids)


class SchedulerOutput(NamedTuple):
    """One step's plan.

    Attributes:
        scheduled: what to compute; sequences that decode come first.
        finished: seq_ids that ended since the last plan; state that is kept by seq_id is dropped now.
        admitted: sequences that waited until now; among those scheduled.
    """

    scheduled: tuple[ScheduledSequence, ...]
    finished: tuple[int, ...] = ()
    admitted: tuple[Sequence, ...] = ()


class Scheduler:
    """Queues, pages and progress of all requests.

    `running` is in the order of admission and `waiting` first come, first served. When pages run out, the sequence that
    was admitted last gives its pages back and goes to the front of the queue; as no request can need more pages than
    there are, the one admitted first always gets on, and so do all in their turn.
    """

    def __init__(self, config: SchedulerConfig, eos_token_ids: Collection[int] = ()) -> None:
        self.config = config
        self.max_model_len = min(config.max_model_len, config.num_pages * config.page_size)
        self.pool = PagePool(config.num_pages)
        self.cache = PrefixCache(self.pool, config.page_size)
        self.requests: dict[str, Request] = {}
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self.num_preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self._eos = frozenset(eos_token_ids)
        self._finished: list[int] = []
        self._last_refused = (-1, -1)  # the sequence that last found no room, and the pages that there were

    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def add(self, request: Request) -> None:
        """Queue a request. RequestError if it can never be served, QueueFullError if it cannot be now."""
        length, config = len(request.prompt_ids), self.config
        if length == 0:
            raise RequestError("The prompt must not be empty.", param="messages")
        if length + (request.params.pooling is None and request.params.max_tokens != 0) > self.max_model_len:
            raise ContextLengthError(
                f"This model's maximum context length is {self.max_model_len} tokens. However, your messages resulted "
                f"in {length} tokens, which leaves no room for an answer. Please reduce the length of the messages."
            )
        if request.request_id in self.requests:
            raise RequestError(f"A request with the id {request.request_id!r} is being served already.")
        room = config.max_num_seqs + config.max_waiting - len(self.running) - len(self.waiting)
        if len(request.sequences) > room:
            raise QueueFullError(
                f"The server is busy: {len(self.waiting)} sequences wait and {len(self.running)} run. "
                "Please try again later."
            )
        wanted = request.params.max_tokens
        request.max_length = self.max_model_len if wanted is None else min(self.max_model_len, length + wanted)
        self.requests[request.request_id] = request
        self.waiting.extend(request.sequences)

    def abort(self, request_id: str) -> list[Sequence]:
        """End a request's unfinished sequences, free their pages and return them; none if the id is unknown."""
        request = self.requests.get(request_id)
        ended = [s for s in request.sequences if s.status is not Status.FINISHED] if request else []
        for sequence in ended:
            self.finish(sequence, "abort")
        return ended

    def schedule(self) -> SchedulerOutput:
        """Plan one step: sequences that decode, then those that catch up, then those that wait, as the limits allow."""
        budget, size = self.config.max_num_batched_tokens, self.config.page_size
        for sequence in tuple(self.running):  # before any is in the plan, as the last admitted is preempted
            if len(sequence.token_ids) > len(sequence.pages) * size:
                while sequence.status is Status.RUNNING and not self._grow(sequence):
                    self._preempt(self.running.pop())
        decoding: list[ScheduledSequence] = []
        catching_up: list[ScheduledSequence] = []
        for sequence in self.running:
            left = len(sequence.token_ids) - sequence.num_computed_tokens
            (decoding if left == 1 else catching_up).append(ScheduledSequence(sequence, left))
        scheduled = decoding[:budget]
        budget -= len(scheduled)
        for item in catching_up:
            if budget:
                scheduled.append(ScheduledSequence(item.sequence, min(item.num_tokens, budget)))
                budget -= scheduled[-1].num_tokens
        admitted = self._admit_waiting(scheduled, budget) if self.waiting else ()
        if not scheduled and self.has_work():
            raise AssertionError("the scheduler is stuck: there is work, and none of it fits")
        finished, self._finished = tuple(self._finished), []
        return SchedulerOutput(tuple(scheduled), finished, admitted)

    def update(
        self, plan: SchedulerOutput, sampled: Mapping[int, Sampled]
    ) -> list[tuple[Sequence, SampledToken | Pooled | Scored | None]]:
        """Book an executed plan; return the sequences with news, or that it failed (with None)."""
        news: list[tuple[Sequence, SampledToken | Pooled | Scored | None]] = []
        size = self.config.page_size
        for item in plan.scheduled:
            sequence = item.sequence
            result = sampled[sequence.seq_id] if item.samples else None
            if isinstance(result, EngineError):
                self.fail(sequence, str(result))
                news.append((sequence, None))
                continue
            sequence.num_computed_tokens += item.num_tokens
            if sequence.num_computed_tokens // size > sequence.num_indexed_pages:
                self._index_pages(sequence)
            if isinstance(result, (Pooled, Scored)):
                self.finish(sequence, "stop" if isinstance(result, Pooled) else "length")
            elif result is not None:
                result = self._append(sequence, result)
            if result is not None:
                news.append((sequence, result))
        return news

    def finish(self, sequence: Sequence, reason: FinishReason, stop_reason: str | int | None = None) -> None:
        """End a sequence and free its pages. One that has ended already only changes its reason."""
        sequence.finish_reason, sequence.stop_reason = reason, stop_reason
        if sequence.status is Status.FINISHED:
            return
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        sequence.status = Status.FINISHED
        self._release_pages(sequence)
        self._finished.append(sequence.seq_id)
        if sequence.request.finished:
            del self.requests[sequence.request.request_id]

    def fail(self, sequence: Sequence, error: str) -> None:
        """End a sequence that the model failed on; the pages that it computed are not reused."""
        self.cache.forget(sequence.pages)
        sequence.error = error
        self.finish(sequence, "error")

    def check_integrity(self) -> None:
        """Raise AssertionError if pages leak or are shared by mistake. For tests; O(pages)."""
        self.pool.check_integrity([s.pages for s in self.running])
        for sequence in self.running:
            if len(set(sequence.pages)) != len(sequence.pages):
                raise AssertionError(f"sequence {sequence.seq_id} holds a page twice")
        if any(s.pages for s in self.waiting):
            raise AssertionError("a waiting sequence holds pages")

    def _admit_waiting(self, scheduled: list[ScheduledSequence], budget: int) -> tuple[Sequence, ...]:
        """Add those to the plan that there is room for, and return them."""
        held_back: list[Sequence] = []
        others = len(scheduled)
        while self.waiting and budget and len(self.running) < self.config.max_num_seqs:
            sequence = self.waiting[0]
            first = sequence.request.sequences[0]
            if sequence is not first and not first.num_generated_tokens and first.status is not Status.FINISHED:
                # Choice 0 computes the prompt, and the others find it in the prefix cache.
                held_back.append(self.waiting.popleft())
                continue
            if not self._admit(sequence):
                break
            self.waiting.popleft()
            scheduled.append(ScheduledSequence(sequence, min(sequence.num_uncomputed_tokens, budget)))
            budget -= scheduled[-1].num_tokens
        self.waiting.extendleft(reversed(held_back))
        return tuple(item.sequence for item in scheduled[others:])

    def _admit(self, sequence: Sequence) -> bool:
        """Take pages for all tokens known so far, so that a prompt once begun cannot run out of them."""
        if self._last_refused[0] == sequence.seq_id and self.pool.num_available <= self._last_refused[1]:
            return False  # spares a long prompt its look-up in each step that it waits
        skips = self.config.prefix_caching and (sequence.index or not sequence.request.params.needs_every_position)
        found, node = self.cache.acquire(sequence.token_ids) if skips else ([], ROOT)
        missing = -(-len(sequence.token_ids) // self.config.page_size) - len(found)
        # One spare page for each that runs, or the new one would be preempted as soon as they grow.
        fresh = self.pool.allocate(missing) if missing + len(self.running) <= self.pool.num_available else None
        if fresh is None:
            self.pool.release(reversed(found))
            self._last_refused = (sequence.seq_id, self.pool.num_available)
            return False
        sequence.pages = found + fresh
        sequence.num_indexed_pages, sequence.prefix_node = len(found), node
        sequence.num_computed_tokens = len(found) * self.config.page_size
        sequence.status = Status.RUNNING
        self.running.append(sequence)
        if not sequence.num_preemptions:
            sequence.num_cached_tokens = sequence.num_computed_tokens
            self.prefix_queries += len(sequence.token_ids)
            self.prefix_hits += sequence.num_cached_tokens
        return True

    def _grow(self, sequence: Sequence) -> bool:
        missing = -(-len(sequence.token_ids) // self.config.page_size) - len(sequence.pages)
        if missing <= 0:
            return True
        fresh = self.pool.allocate(missing)
        sequence.pages += fresh or ()
        return fresh is not None

    def _preempt(self, sequence: Sequence) -> None:
        self._release_pages(sequence)
        sequence.status = Status.WAITING
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.appendleft(sequence)

    def _release_pages(self, sequence: Sequence) -> None:
        self.pool.release(reversed(sequence.pages))  # the end of a prompt is the least likely to be asked for again
        sequence.pages = []
        sequence.num_computed_tokens = 0

    def _index_pages(self, sequence: Sequence) -> None:
        size = self.config.page_size
        if not self.config.prefix_caching:
            return
        for i in range(sequence.num_indexed_pages, sequence.num_computed_tokens // size):
            tokens = sequence.token_ids[i * size : (i + 1) * size]
            sequence.prefix_node = self.cache.insert(sequence.prefix_node, tokens, sequence.pages[i])
            sequence.num_indexed_pages = i + 1

    def _append(self, sequence: Sequence, result: SampledToken) -> SampledToken:
        """Add a token, and what a grammar forces to follow it, as far as the sequence goes; return what was added."""
        for count, token_id in enumerate((result.token_id, *result.forced)):
            sequence.token_ids.append(token_id)
            self._check_end(sequence, token_id)
            if sequence.status is Status.FINISHED:
                return result._replace(forced=result.forced[:count])
        return result

    def _check_end(self, sequence: Sequence, token_id: int) -> None:
        params = sequence.request.params
        enough = sequence.num_generated_tokens > params.min_tokens
        # A grammar lets a text end only where it is whole, and where nothing else may follow it has to.
        if token_id in self._eos and (params.grammar is not None or (enough and not params.ignore_eos)):
            self.finish(sequence, "stop")
        elif enough and token_id in params.stop_token_ids:
            self.finish(sequence, "stop", token_id)
        elif len(sequence.token_ids) >= sequence.request.max_length:
            self.finish(sequence, "length")
