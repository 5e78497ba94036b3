"""A device that has memory of its own must come to the same tokens as one that shares the host's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm

from llmserve.engine import SamplingParams
from llmserve.engine.plan.sequence import Request
from llmserve.engine.run.choices import choose_in_numpy, is_finite, peak_of
from llmserve.engine.run.device_memory import DeviceMemory
from llmserve.engine.run.executor import LocalExecutor
from llmserve.engine.run.model_runner import ModelRunner
from llmserve.engine.run.sampler import Sampler
from llmserve.llm import LLM

PARAMS = [
    SamplingParams(temperature=0.0, max_tokens=40),
    SamplingParams(temperature=0.9, top_p=0.8, seed=1, max_tokens=40, logprobs=3),
    SamplingParams(temperature=0.0, repetition_penalty=1.5, frequency_penalty=0.3, max_tokens=40),
    SamplingParams(top_k=5, seed=2, logit_bias={7: 3.0}, min_tokens=5, max_tokens=20),
    SamplingParams(min_p=0.05, seed=3, prompt_logprobs=1, max_tokens=10),
]
PROMPTS = [[1 + (7 * i + j) % 90 for j in range(5 + 13 * i)] for i in range(len(PARAMS))]


@pytest.fixture(scope="module")
def llm(checkpoint: Callable[[str], Path]) -> LLM:
    return LLM(checkpoint("llama"), quant="q4", kv_cache_memory="16MiB", max_num_seqs=16, prefix_caching=False)


def test_memory_of_its_own_changes_nothing(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = llm.generate(PROMPTS, PARAMS)
    executor: Any = llm._core.executor
    runner = ModelRunner(llm.compiled, executor.num_pages, memory=DeviceMemory(tvm.cpu()))
    monkeypatch.setattr(executor, "runner", runner)
    monkeypatch.setattr(executor, "_sampler", Sampler(llm.tokenizer.eos_token_ids, runner.choose_from))
    monkeypatch.setattr(executor._scorer, "_head", runner.head)
    monkeypatch.setattr(executor._scorer, "_sampler", executor._sampler)
    assert llm.generate(PROMPTS, PARAMS) == shared


def test_steps_that_are_replayed_choose_the_same_tokens(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    executor: Any = llm._core.executor
    found = llm.generate(PROMPTS, PARAMS)
    assert executor.runner._next._recordings
    monkeypatch.setattr(executor.runner, "_next", executor.runner._vm["next"])
    assert llm.generate(PROMPTS, PARAMS) == found


def test_greedy_tokens_are_the_likeliest(llm: LLM) -> None:
    """What is chosen in the step's own call, against logits that come from another."""
    (result,) = llm.generate([PROMPTS[1]], SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True))
    tokens = [*PROMPTS[1], *result.outputs[0].token_ids]
    logits = llm.logits(tokens)[len(PROMPTS[1]) - 1 : -1]
    chosen = logits[np.arange(20), tokens[len(PROMPTS[1]) :]]
    # Keys and values of a prompt and of one token at a time are summed in different orders.
    assert (logits.max(1) - chosen <= 1e-4 * np.abs(logits).max()).all()


def test_alone_and_together_are_the_same(llm: LLM) -> None:
    together = llm.generate(PROMPTS, PARAMS)
    assert [llm.generate([prompt], its)[0] for prompt, its in zip(PROMPTS, PARAMS, strict=True)] == together


def test_the_kernel_chooses_as_numpy_does(llm: LLM) -> None:
    """Through the engine's own path: the same logits, the same choices."""
    executor = llm._core.executor
    assert isinstance(executor, LocalExecutor)
    logits = np.random.default_rng(0).standard_normal((8, executor.vocab_size)).astype(np.float32) * 3
    logits[5, 3] = np.nan
    settings: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.0, "logit_bias": {4: 50.0}},
        {"top_k": 1},
        {"temperature": 0.0, "presence_penalty": 2.0},
        {"temperature": 0.01},
        {},
        {"temperature": 0.0, "repetition_penalty": 9.0},
        {"min_p": 1.0},
    ]
    sequences = [Request("r", [1, 2, 3], SamplingParams(**s), i).sequences[0] for i, s in enumerate(settings)]
    choices = Sampler([0]).prepare(sequences, executor.vocab_size).choices
    ours, theirs = executor.runner.choose_from(logits, choices), choose_in_numpy(logits, choices)
    assert [row[0] for i, row in enumerate(ours) if i != 5] == [row[0] for i, row in enumerate(theirs) if i != 5]
    np.testing.assert_allclose([peak_of(row) for row in ours], [peak_of(row) for row in theirs], rtol=1e-6)
    assert [is_finite(bits) for _, bits in ours] == [i != 5 for i in range(8)]
