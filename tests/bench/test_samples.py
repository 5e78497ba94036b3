"""Samples of a benchmark: those that count, their order and the waits between, on an imitated machine."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import samples
from contention import SHARE_WANTED, Spinners, beside, kept
from samples import Job, QuietWait, Sample, best, in_turns, medians

from llmserve.bench import host


def sample(value: float, others: float | None, seconds: float = 1.0) -> Sample:
    return Sample({"rate": value}, others, seconds)


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "cores", lambda: 2)


def test_a_disturbed_sample_does_not_count() -> None:
    taken = [sample(30.0, 0.01), sample(3.0, 0.9), sample(32.0, 0.0), sample(31.0, None)]
    assert [s.undisturbed for s in taken] == [True, False, True, True]
    assert medians(taken) == {"rate": 31.0}
    assert medians([sample(3.0, 0.9)]) == {}, "no figure rather than a wrong one"


def test_the_accounting_is_too_coarse_to_condemn_a_short_sample() -> None:
    assert sample(1.0, 0.4, seconds=0.05).undisturbed
    assert not sample(1.0, 0.4, seconds=5.0).undisturbed


def test_the_peer_is_taken_at_its_best_figure_by_figure() -> None:
    assert best([{"a": 1.0, "b": 5.0}, {"a": 2.0, "b": 4.0}, {}]) == {"a": 2.0, "b": 5.0}


class Machine:
    """What `Bystanders` will say, one answer for each time it is asked; nobody is there afterwards."""

    def __init__(self, *others: float) -> None:
        self.others = list(others)
        self.pids: list[tuple[int | str, ...]] = []

    def __call__(self, *pids: int | str) -> Machine:
        self.pids.append(pids)
        return self

    def cores(self) -> float:
        return self.others.pop(0) if self.others else 0.0


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    def made(*others: float) -> Machine:
        found = Machine(*others)
        monkeypatch.setattr(samples, "Bystanders", found)
        monkeypatch.setattr(samples.time, "sleep", lambda seconds: None)
        return found

    return made


def counting(name: str, log: list[str], seconds: float = 1.0) -> Job:
    def ask() -> dict[str, float]:
        log.append(name)
        return {"rate": float(len(log))}

    return Job(name, ask, (7,))


def slow_clock(monkeypatch: pytest.MonkeyPatch, step: float = 1.0) -> None:
    """Every look at the clock is a second after the last."""
    now = iter(range(10_000))
    monkeypatch.setattr(samples.time, "perf_counter", lambda: next(now) * step)


def test_a_sample_is_taken_again_until_nobody_disturbs_it(
    machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_clock(monkeypatch)
    log: list[str] = []
    asked = machine(0.0, 0.9, 0.0, 0.8, 0.0, 0.0)  # waiting, then the sample, in turns
    taken = QuietWait(100).sample(counting("a", log))
    assert [s.undisturbed for s in taken] == [False, False, True]
    assert medians(taken) == {"rate": 3.0}
    assert {(), (7,)} >= set(asked.pids) and (7,) in asked.pids, "the job's own work is nobody else's"


def test_patience_ends(machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch) -> None:
    slow_clock(monkeypatch)
    machine(*[0.9] * 1000)
    patience, log = QuietWait(5), list[str]()
    assert not any(s.undisturbed for s in patience.sample(counting("a", log)))
    assert patience.exhausted
    before = len(log)
    assert len(patience.sample(counting("a", log))) == 1, "measured as it is, once"
    assert len(log) == before + 1


def test_turns_go_there_and_back(machine: Callable[..., Machine]) -> None:
    machine()
    log: list[str] = []
    a, b = counting("a", log), counting("b", log)
    record = in_turns([[a, b]], 3, QuietWait(0))
    assert log == ["a", "b", "b", "a", "a", "b"]
    assert {name: len(its) for name, its in record.items()} == {"a": 3, "b": 3}


def test_a_second_load_is_there_while_it_is_asked_for_and_is_our_own() -> None:
    spinners = Spinners(1)
    try:
        (pid,) = spinners.pids
        burnt: list[float] = []

        def ask() -> dict[str, float]:
            began = host.process_seconds(pid)
            while host.process_seconds(pid) < began + 0.05:
                pass
            burnt.append(host.process_seconds(pid))
            return {"rate": 1.0}

        job = beside(Job("a", ask, (1,)), spinners)
        assert (job.name, job.pids) == ("a, loaded", (1, pid))
        job.ask()
        after = host.process_seconds(pid)
        host.Bystanders(pid)
        until = host.time.perf_counter() + 0.2
        while host.time.perf_counter() < until:
            pass
        assert host.process_seconds(pid) - after < 0.05, "it stands still in between"
    finally:
        spinners.close()


def test_what_is_kept_beside_it() -> None:
    assert kept(40.0, 10.0) == 0.25 == SHARE_WANTED
    assert kept(40.0, None) is None and kept(None, 1.0) is None
