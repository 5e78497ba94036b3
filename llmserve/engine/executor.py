"""Executors hold devices. LocalExecutor: one device, in this process. A tensor-parallel one would be its sibling."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..compile.compiled import CompiledModel
from .model_runner import ModelRunner
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

    def execute(self, plan: SchedulerOutput, /) -> Mapping[int, Sampled]:
        logits = self.runner.logits(plan.scheduled)
        sampling = [item.sequence for item in plan.scheduled if item.samples]
        tokens = self._sampler.sample(logits, sampling)
        return {sequence.seq_id: token for sequence, token in zip(sampling, tokens, strict=True)}

    def close(self) -> None:
        del self.runner
