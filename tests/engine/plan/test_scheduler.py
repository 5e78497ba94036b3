"""Plans keep to the limits, favour who decodes, and never get stuck."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llmserve.engine import SampledToken, SamplingParams
from llmserve.engine.plan.scheduler import Scheduler, SchedulerOutput
from llmserve.engine.plan.scheduler_config import SchedulerConfig
from llmserve.engine.plan.sequence import Request, Sequence, Status
from llmserve.errors import ConfigError, ContextLengthError, EngineError, QueueFullError, RequestError


class Bench:
    """A scheduler and a model that always says 7."""

    def __init__(self, **limits: int) -> None:
        settings = {
            "max_num_seqs": 4,
            "max_num_batched_tokens": 8,
            "max_model_len": 32,
            "page_size": 4,
            "num_pages": 16,
        }
        self.scheduler = Scheduler(SchedulerConfig(**(settings | limits)), eos_token_ids=[0])
        self.arrival = 0

    def add(self, length: int, first: int = 100, **params: object) -> Request:
        params = {"temperature": 0.0} | params
        request = Request(
            f"r{self.arrival}", list(range(first, first + length)), SamplingParams(**params), self.arrival
        )
        self.scheduler.add(request)
        self.arrival += len(request.sequences)
        return request

    def step(self, token: int = 7) -> dict[int, int]:
        """One step; the plan as {seq_id: number of tokens}."""
        plan = self.scheduler.schedule()
        self.book(plan, token)
        return {s.sequence.seq_id: s.num_tokens for s in plan.scheduled}

    def book(self, plan: SchedulerOutput, token: int = 7) -> None:
        self.scheduler.update(plan, {s.sequence.seq_id: SampledToken(token) for s in plan.scheduled if s.samples})
        self.scheduler.check_integrity()


def only(request: Request) -> Sequence:
    (sequence,) = request.sequences
    return sequence


def test_a_long_prompt_is_computed_in_chunks_and_samples_at_its_end() -> None:
    bench = Bench()
    sequence = only(bench.add(19, max_tokens=2))
    assert bench.step() == {0: 8} and sequence.num_generated_tokens == 0
    assert bench.step() == {0: 8} and sequence.num_generated_tokens == 0
    assert bench.step() == {0: 3} and sequence.token_ids[19:] == [7]
    assert bench.step() == {0: 1} and sequence.token_ids[19:] == [7, 7]
    assert sequence.finish_reason == "length" and not bench.scheduler.has_work()


def test_decodes_come_before_chunks_and_chunks_before_newcomers() -> None:
    bench = Bench()
    bench.add(3)
    bench.step()
    bench.add(12, first=200)
    bench.add(6, first=300)
    assert list(bench.step().items()) == [(0, 1), (1, 7)]
    assert list(bench.step().items()) == [(0, 1), (1, 5), (2, 2)]
    assert list(bench.step().items()) == [(0, 1), (1, 1), (2, 4)]


def test_no_more_run_at_once_than_allowed() -> None:
    bench = Bench(max_num_seqs=2)
    for i in range(3):
        bench.add(2, first=100 * i, max_tokens=2)
    assert bench.step() == {0: 2, 1: 2}
    assert bench.step() == {0: 1, 1: 1}
    assert bench.step() == {2: 2}


def test_pages_cover_what_is_scheduled() -> None:
    bench = Bench()
    sequence = only(bench.add(8))
    plan = bench.scheduler.schedule()
    assert plan.scheduled[0].samples and len(sequence.pages) == 2
    bench.book(plan)
    bench.scheduler.schedule()
    assert len(sequence.pages) == 3


def test_a_prompt_known_already_is_not_computed_again() -> None:
    bench = Bench()
    bench.add(8, max_tokens=1)
    bench.step()
    sequence = only(bench.add(8))
    assert bench.step() == {1: 4} and sequence.num_cached_tokens == 4  # the last page must give logits
    assert (bench.scheduler.prefix_queries, bench.scheduler.prefix_hits) == (16, 4)
    longer = only(bench.add(11))
    assert bench.step()[2] == 3 and longer.num_cached_tokens == 8


def test_without_prefix_caching_every_prompt_is_computed() -> None:
    bench = Bench(prefix_caching=False)
    bench.add(8, max_tokens=1)
    bench.step()
    bench.add(8)
    assert bench.step() == {1: 8}


def test_pages_in_computation_are_not_shared_yet() -> None:
    bench = Bench(max_num_batched_tokens=64)
    bench.add(8)
    bench.add(8)
    assert bench.step() == {0: 8, 1: 8}


def test_further_choices_wait_for_the_first_and_share_its_prompt() -> None:
    bench = Bench(max_num_batched_tokens=64)
    request = bench.add(9, n=3)
    other = bench.add(3, first=500)
    assert bench.step() == {0: 9, 3: 3}  # others are not held up
    assert list(bench.scheduler.waiting) == request.sequences[1:]
    assert bench.step() == {0: 1, 3: 1, 1: 1, 2: 1}
    assert [s.num_cached_tokens for s in request.sequences] == [0, 8, 8]
    assert request.sequences[0].pages[:2] == request.sequences[2].pages[:2]
    assert only(other).pages[0] not in request.sequences[0].pages


def test_when_pages_run_out_the_last_admitted_starts_over_and_all_finish() -> None:
    bench = Bench(num_pages=4, max_num_batched_tokens=16)
    old, young = only(bench.add(5, max_tokens=8)), only(bench.add(3, first=200, max_tokens=8))
    for _ in range(4):
        assert set(bench.step()) == {0, 1}
    plan = bench.scheduler.schedule()  # both want a third and a second page, respectively; there is one
    while not young.num_preemptions:
        bench.book(plan)
        plan = bench.scheduler.schedule()
    assert not old.num_preemptions and [s.sequence.seq_id for s in plan.scheduled] == [0]
    assert young.status is Status.WAITING and young.num_computed_tokens == 0 and young.pages == []
    assert young.num_generated_tokens > 0
    bench.book(plan)
    while bench.scheduler.has_work():
        bench.step()
    assert bench.scheduler.num_preemptions >= 1
    assert (old.num_generated_tokens, young.num_generated_tokens) == (8, 8)
    assert bench.scheduler.pool.num_available == 4


def test_the_preempted_does_not_come_back_in_the_same_plan() -> None:
    bench = Bench(num_pages=7, max_num_batched_tokens=64)
    sequences = [only(bench.add(3, first=100 * i, max_tokens=12)) for i in range(4)]
    while bench.scheduler.has_work():
        before = [s.num_preemptions for s in sequences]
        plan = bench.scheduler.schedule()
        preempted = {s.seq_id for s, count in zip(sequences, before, strict=True) if s.num_preemptions > count}
        assert not preempted & {s.sequence.seq_id for s in plan.scheduled}
        bench.book(plan)
    assert bench.scheduler.num_preemptions > 0


def test_the_preempted_goes_first_and_reports_its_first_cache_hits() -> None:
    bench = Bench(num_pages=4, max_num_batched_tokens=16)
    bench.add(5, max_tokens=12)
    young = only(bench.add(3, first=200, max_tokens=12))
    waiting = only(bench.add(3, first=300, max_tokens=1))
    while not young.num_preemptions:
        bench.step()
    assert list(bench.scheduler.waiting) == [young, waiting]
    while bench.scheduler.has_work():
        bench.step()
    assert young.num_cached_tokens == 0


def test_what_can_never_fit_is_refused_and_what_may_grow_too_long_ends_with_length() -> None:
    bench = Bench(num_pages=3, max_model_len=100)
    assert bench.scheduler.max_model_len == 12
    with pytest.raises(ContextLengthError, match=r"maximum context length is 12 tokens.* resulted in 12 tokens"):
        bench.add(12)
    sequence = only(bench.add(9, max_tokens=50))
    while bench.scheduler.has_work():
        bench.step()
    assert sequence.finish_reason == "length" and len(sequence.token_ids) == 12


@pytest.mark.parametrize(
    ("params", "token", "reason"),
    [
        ({}, 0, ("stop", None)),
        ({"ignore_eos": True}, 0, (None, None)),
        ({"stop_token_ids": (5,)}, 5, ("stop", 5)),
        ({"stop_token_ids": (5,)}, 6, (None, None)),
        ({"stop_token_ids": (5,), "max_tokens": 1}, 5, ("stop", 5)),
        ({"max_tokens": 1}, 6, ("length", None)),
        ({"min_tokens": 1}, 0, (None, None)),
        ({"min_tokens": 1, "max_tokens": 1}, 0, ("length", None)),
    ],
)
def test_ends(params: dict[str, object], token: int, reason: tuple[str | None, str | int | None]) -> None:
    bench = Bench()
    sequence = only(bench.add(3, **params))
    bench.step(token)
    assert (sequence.finish_reason, sequence.stop_reason) == reason
    assert sequence.token_ids[3:] == [token]
    assert (bench.scheduler.pool.num_available == 16) == (reason[0] is not None)


def test_the_queue_is_bounded_and_counts_choices() -> None:
    bench = Bench(max_num_seqs=2, max_waiting=3)
    bench.add(2, n=2)
    bench.add(2, n=3)
    with pytest.raises(QueueFullError):
        bench.add(2)
    bench.scheduler.abort("r0")
    bench.add(2, n=2)


def test_requests_that_make_no_sense_are_refused() -> None:
    bench = Bench()
    with pytest.raises(RequestError, match="empty"):
        bench.add(0)
    bench.add(2)
    with pytest.raises(RequestError, match="r0"):
        bench.scheduler.add(Request("r0", [1], SamplingParams(), 99))
    assert len(bench.scheduler.waiting) == 1


def test_abort_frees_waiting_and_running_at_once() -> None:
    bench = Bench(max_num_seqs=1)
    running, waiting = only(bench.add(6)), only(bench.add(6))
    bench.step()
    assert bench.scheduler.abort("r1") == [waiting] and bench.scheduler.abort("r0") == [running]
    assert bench.scheduler.abort("r0") == [] and bench.scheduler.abort("unknown") == []
    assert running.finish_reason == waiting.finish_reason == "abort"
    assert not bench.scheduler.has_work() and bench.scheduler.pool.num_available == 16
    assert bench.scheduler.schedule().finished == (1, 0)


def test_a_failed_sequence_ends_alone_and_its_pages_are_not_trusted() -> None:
    bench = Bench(max_num_batched_tokens=64)
    sick, sound = only(bench.add(9)), only(bench.add(9, first=200))
    bench.step()
    plan = bench.scheduler.schedule()
    news = bench.scheduler.update(plan, {0: EngineError("logits are NaN"), 1: SampledToken(7)})
    assert news == [(sick, None), (sound, SampledToken(7))]
    assert (sick.finish_reason, sick.error) == ("error", "logits are NaN") and sound.finish_reason is None
    again = only(bench.add(9))
    bench.step()
    assert again.num_cached_tokens == 0


def test_a_waiting_prompt_is_looked_up_again_only_when_pages_came_back(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(num_pages=4)
    bench.add(9, max_tokens=3)
    bench.step()
    bench.add(9, first=200)
    looked = []
    acquire = bench.scheduler.cache.acquire
    monkeypatch.setattr(bench.scheduler.cache, "acquire", lambda ids: looked.append(1) or acquire(ids))
    bench.step()
    bench.step()
    assert len(looked) == 1
    bench.step()
    bench.step()
    assert len(looked) == 2 and len(bench.scheduler.running) == 1


@pytest.mark.parametrize(
    "limits", [{"max_num_seqs": 0}, {"num_pages": 0}, {"max_num_batched_tokens": 3}, {"max_waiting": -1}]
)
def test_impossible_limits_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(limits))):
        Bench(**limits)


def test_seeds_are_distinct_per_choice_and_fresh_unless_given() -> None:
    def seeds(**params: object) -> list[int]:
        return [s.seed for s in Request("r", [1], SamplingParams(**params), 0).sequences]

    assert seeds(seed=5, n=3) == [5, 6, 7]
    assert seeds(seed=-1, n=2) == [2**64 - 1, 0]
    assert seeds() != seeds()


def test_the_engine_imports_no_compiler_and_no_web_framework() -> None:
    code = "import sys, llmserve.engine; print([m for m in ('tvm', 'tvm_ffi', 'fastapi') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
