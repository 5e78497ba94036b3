"""Executors hold devices. LocalExecutor: one device, in this process. A tensor-parallel one would be its sibling."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..compile.compiled import CompiledModel
from .model_runner import ModelRunner
from .pooler import Pooler, wanted_rows
from .sampler import Sampler
from .scheduler import Sampled, SchedulerOutput


class LocalExecutor:
    """Runs plans on one device and samples from their logits; see `core.Executor` for the contract."""

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
        self._sampler = Sampler(eos_token_ids, self.runner.draw)
        self._pooler = Pooler()

    def execute(self, plan: SchedulerOutput, /) -> Mapping[int, Sampled]:
        self._pooler.forget(plan.finished)
        pooled = [item for item in plan.scheduled if item.sequence.request.params.pooling]
        others = [item for item in plan.scheduled if not item.sequence.request.params.pooling]
        results: dict[int, Sampled] = {}
        if others:
            logits = self.runner.logits(others)
            sampling = [item.sequence for item in others if item.samples]
            tokens = self._sampler.sample(logits, sampling)
            results = {sequence.seq_id: token for sequence, token in zip(sampling, tokens, strict=True)}
        if pooled:  # a call of its own: it returns rows by the hundred, and needs no logits of them
            results |= self._pooler.pool(pooled, self.runner.hidden(pooled, wanted_rows(pooled)))
        return results

    def close(self) -> None:
        del self.runner
