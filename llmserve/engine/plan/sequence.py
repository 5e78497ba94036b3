"""A request and its sequences: the state that the scheduler changes, and nothing that acts on it.

A sequence is one stream of tokens; a request with n > 1 has n of them, which share the prompt. Pure data, owned by the
engine thread.
"""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass, field

from .grammar_spec import CompiledGrammar, Matcher
from .outputs import FinishReason
from .sampling_params import SamplingParams

_SEED_MASK = 2**64 - 1


class Status(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """One stream of tokens and how far the model has got with it.

    Attributes:
        seq_id: unique in one engine and rising in the order of arrival.
        index: which of its request's choices this is.
        token_ids: the prompt, then what was generated.
        seed: 64 bits; with a token's position it decides that token's random number, whatever else is in the batch.
        num_computed_tokens: how many tokens have their keys and values in `pages`.
        pages: the page table; token i lives in slot `pages[i // page_size] * page_size + i % page_size`. It only grows
            while the sequence runs, may reach further than the tokens scheduled so far, and is empty otherwise.
        num_cached_tokens: how many prompt tokens the prefix cache saved when the sequence first started.
        num_indexed_pages, prefix_node: how many pages the prefix cache knows, and its name for the last of them.
        matcher: where the sequence stands in its request's grammar, if there is one.
        finish_reason, stop_reason, error: why it ended; all None until then.
    """

    seq_id: int
    request: Request
    index: int
    token_ids: list[int]
    seed: int
    matcher: Matcher | None = None
    status: Status = Status.WAITING
    num_computed_tokens: int = 0
    pages: list[int] = field(default_factory=list)
    num_cached_tokens: int = 0
    num_indexed_pages: int = 0
    prefix_node: int = 0
    num_preemptions: int = 0
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: str | None = None

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def num_generated_tokens(self) -> int:
        return len(self.token_ids) - len(self.request.prompt_ids)

    @property
    def is_scoring(self) -> bool:
        """Whether the prompt's log-probabilities are wanted, and to come with this sequence's next result."""
        return self.request.params.prompt_logprobs is not None and self.index == 0 and not self.num_generated_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """1 while decoding, more while catching up with a prompt or after a preemption."""
        return len(self.token_ids) - self.num_computed_tokens


@dataclass(slots=True, eq=False)
class Request:
    """A prompt, what is asked of it, and the sequences that answer.

    Attributes:
        arrival: the seq_id of the first sequence; the others follow.
        grammar: what the answers must be, compiled from `params.grammar`.
        max_length: tokens that a sequence may reach, its prompt included; the scheduler sets it.
        scheduled_at: when it was first computed, in monotonic seconds; None while it waits for that.
    """

    request_id: str
    prompt_ids: list[int]
    params: SamplingParams
    arrival: int
    grammar: CompiledGrammar | None = None
    max_length: int = 0
    scheduled_at: float | None = None
    sequences: list[Sequence] = field(init=False)

    def __post_init__(self) -> None:
        seed = self.params.seed if self.params.seed is not None else int.from_bytes(os.urandom(8), "little")
        self.sequences = [
            Sequence(self.arrival + i, self, i, list(self.prompt_ids), (seed + i) & _SEED_MASK, self._matcher())
            for i in range(self.params.n)
        ]

    def _matcher(self) -> Matcher | None:
        # Tokens that were not sampled have no log-probability, so where these are asked for, every one is.
        return None if self.grammar is None else self.grammar.matcher(jump=self.params.logprobs is None)

    @property
    def finished(self) -> bool:
        for sequence in self.sequences:  # noqa: SIM110  # asked for every token: no generator
            if sequence.status is not Status.FINISHED:
                return False
        return True
