"""Executors: the holders of devices, which compute plans. LocalExecutor has one device, in this process."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from ...compile.compiled import CompiledModel
from ..plan.scheduler import Sampled, ScheduledSequence, SchedulerOutput
from .model_runner import ModelRunner
from .pooler import Pooler, wanted_rows
from .sampler import Sampler
from .scorer import Scorer


class LocalExecutor:
    """Runs plans on one device and chooses tokens there; see `core.Executor` for the contract."""

    def __init__(
        self,
        model: CompiledModel,
        num_pages: int,
        eos_token_ids: Collection[int] = (),
        num_threads: int | None = None,
    ) -> None:
        self.num_pages = num_pages
        self.page_size = model.interface.page_size
        self.max_model_len = model.max_model_len
        self.vocab_size = model.interface.vocab_size
        self.runner = ModelRunner(model, num_pages, num_threads)
        known = [token_id for token_id in eos_token_ids if 0 <= token_id < self.vocab_size]  # the others never come
        self._sampler = Sampler(known, self.runner.choose_from)
        self._pooler = Pooler()
        self._scorer = Scorer(self.runner.head, model.interface.max_num_seqs, self._sampler)

    def execute(self, plan: SchedulerOutput, /) -> Mapping[int, Sampled]:
        if plan.finished:
            self._pooler.forget(plan.finished)
            self._scorer.forget(plan.finished)
        pooled: list[ScheduledSequence] = []
        scored: list[ScheduledSequence] = []
        others: list[ScheduledSequence] = []
        for item in plan.scheduled:
            sequence = item.sequence
            params = sequence.request.params
            if params.pooling:
                pooled.append(item)
            elif params.prompt_logprobs is not None and sequence.is_scoring:
                scored.append(item)
            else:
                others.append(item)
        results: dict[int, Sampled] = {}
        if others:
            sampling = [item.sequence for item in others if item.samples]
            batch = self._sampler.prepare(sampling, self.vocab_size)
            chosen = self.runner.choose(others, batch.choices)
            tokens = self._sampler.finish(batch, chosen, self.runner.logits_of)
            results = {sequence.seq_id: token for sequence, token in zip(sampling, tokens, strict=True)}
        if pooled:  # a call of its own: it returns rows by the hundred, and needs no logits of them
            results |= self._pooler.pool(pooled, self.runner.hidden(pooled, wanted_rows(pooled)))
        if scored:
            everything = np.arange(sum(item.num_tokens for item in scored), dtype=np.int32)
            results |= self._scorer.score(scored, self.runner.hidden(scored, everything))
        return results

    def close(self) -> None:
        del self.runner
