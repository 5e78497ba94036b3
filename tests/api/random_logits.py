"""A model of random logits under the real sampler: for what depends on how tokens are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from llmserve.engine.plan.scheduler import Sampled, SchedulerOutput
from llmserve.engine.run.sampler import Sampler
from llmserve.text.tokenizer import Tokenizer

from ..text import samples
from .server import EOS, Executor


@dataclass
class RandomLogits(Executor):
    """Logits that depend on a sequence's seed and position alone. What closes JSON is likely, and becomes likelier."""

    def __post_init__(self) -> None:
        super().__post_init__()
        tokenizer = Tokenizer(samples.byte_level(), special_tokens={"eos_token": EOS})
        likely = {b'"': 1.0, b"}": 1.0, b"]": 1.0, b",": 0.6, b" ": -1.0, b"\n": -1.0, b"\t": -1.0}
        spelt = map(tokenizer.token_bytes, range(self.vocab_size))
        self.likely = np.array([likely.get(token, 0.0) for token in spelt], np.float32)
        self.likely[list(tokenizer.eos_token_ids)] = 1.0
        self.sampler = Sampler(tokenizer.eos_token_ids)

    def execute(self, plan: SchedulerOutput) -> Mapping[int, Sampled]:
        sampling = [item.sequence for item in plan.scheduled if item.samples]
        logits = np.empty((len(sampling), self.vocab_size), np.float32)
        for row, it in zip(logits, sampling, strict=True):
            rng = np.random.default_rng((it.seed, it.num_generated_tokens))
            row[:] = rng.standard_normal(self.vocab_size) + self.likely * (3 + it.num_generated_tokens / 30)
        return {it.seq_id: result for it, result in zip(sampling, self.sampler.sample(logits, sampling), strict=True)}
