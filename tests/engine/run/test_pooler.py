"""Pooling: what the engine makes of prompts that sample nothing, and that no cut, hit or preemption shows in it."""

from __future__ import annotations

import random

import numpy as np
import pytest

from llmserve.engine import SamplingParams
from llmserve.engine.plan.scheduler import ScheduledSequence
from llmserve.engine.plan.sequence import Request
from llmserve.engine.run.pooler import Pooler, wanted_rows
from llmserve.errors import EngineError, RequestError

from ...fakes import FakeExecutor, make_core, pooled

MEAN, LAST = SamplingParams(pooling="mean"), SamplingParams(pooling="last")


def direction(states: np.ndarray) -> np.ndarray:
    return states / np.linalg.norm(states)


@pytest.mark.parametrize("cut", [[10], [1] * 10, [3, 4, 3]])
def test_chunks_pool_to_the_same_vector(cut: list[int]) -> None:
    states = np.random.default_rng(0).standard_normal((2, 10, 16)).astype(np.float32)
    mean = Request("a", list(range(10)), MEAN, 0).sequences[0]
    last = Request("b", list(range(10)), LAST, 1).sequences[0]
    pooler, results = Pooler(), {}
    done = 0
    for count in cut:
        plan = [ScheduledSequence(mean, count), ScheduledSequence(last, count)]
        flat = np.concatenate([states[0, done : done + count], states[1, done : done + count]])
        results |= pooler.pool(plan, flat[wanted_rows(plan)])
        done += count
        mean.num_computed_tokens = last.num_computed_tokens = done
    vectors = {seq_id: np.frombuffer(result.vector, "<f4") for seq_id, result in results.items()}
    np.testing.assert_allclose(vectors[0], direction(states[0].mean(0)), atol=1e-6)
    np.testing.assert_allclose(vectors[1], direction(states[1, -1]), atol=1e-6)
    assert not pooler._sums


def test_a_prompt_that_starts_over_forgets_its_sum() -> None:
    sequence = Request("a", [1, 2], MEAN, 0).sequences[0]
    pooler = Pooler()
    pooler.pool([ScheduledSequence(sequence, 1)], np.full((1, 2), 7.0, np.float32))
    result = pooler.pool([ScheduledSequence(sequence, 2)], np.array([[3, 0], [0, 4]], np.float32))[0]
    np.testing.assert_allclose(np.frombuffer(result.vector, "<f4"), [0.6, 0.8], atol=1e-6)


def test_sums_of_ended_sequences_are_dropped() -> None:
    sequence = Request("a", [1, 2], MEAN, 0).sequences[0]
    pooler = Pooler()
    pooler.pool([ScheduledSequence(sequence, 1)], np.ones((1, 2), np.float32))
    assert pooler._sums
    pooler.forget([0])
    assert not pooler._sums


def test_what_is_not_finite_is_an_error() -> None:
    sequence = Request("a", [1], MEAN, 0).sequences[0]
    result = Pooler().pool([ScheduledSequence(sequence, 1)], np.array([[1, np.inf]], np.float32))
    assert isinstance(result[0], EngineError)


def test_pooling_and_n_do_not_go_together() -> None:
    with pytest.raises(RequestError, match="n must be 1"):
        SamplingParams(pooling="mean", n=2)


def test_a_pooled_prompt_may_fill_the_context() -> None:
    core = make_core(FakeExecutor(max_model_len=16))
    core.add_request("a", list(range(16)), MEAN)
    with pytest.raises(RequestError, match="maximum context length"):
        core.add_request("b", list(range(17)), MEAN)
    [output] = [o for _ in range(3) for o in core.step()]
    assert output.finished and output.deltas[0].vector == pooled(range(16))
    assert output.deltas[0].finish_reason == "stop" and output.deltas[0].token_ids == ()


@pytest.mark.parametrize("seed", range(60))
def test_scheduling_does_not_change_vectors(seed: int) -> None:
    """Beside sequences that generate, with small pools, chunks and shared beginnings."""
    rng = random.Random(seed)
    executor = FakeExecutor(num_pages=rng.choice([13, 20, 64]), page_size=rng.choice([1, 2, 4]), max_model_len=48)
    core = make_core(executor, max_num_seqs=4, max_num_batched_tokens=rng.choice([4, 7, 64]))
    stem = [rng.randrange(64) for _ in range(core.max_model_len)]
    asked = {}
    for i in range(12):
        prompt = stem[: rng.randrange(1, core.max_model_len)]
        params = rng.choice([MEAN, LAST, SamplingParams(max_tokens=9, ignore_eos=True)])
        asked[f"r{i}"] = (prompt, params)
        core.add_request(f"r{i}", prompt, params)
    vectors = {}
    while core.has_work():
        for output in core.step():
            for delta in output.deltas:
                if delta.vector is not None:
                    assert output.request_id not in vectors
                    vectors[output.request_id] = delta.vector
        core.scheduler.check_integrity()
    expected = {
        name: pooled(prompt if params.pooling == "mean" else prompt[-1:])
        for name, (prompt, params) in asked.items()
        if params.pooling
    }
    assert vectors == expected
    assert not executor.sums and core.stats().num_available_pages == executor.num_pages
