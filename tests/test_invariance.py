"""Scheduling must not change tokens.

Random workloads, with arrivals and aborts between steps, pools so small that sequences are preempted, chunked prompts,
shared prefixes and several choices, must give exactly what each request gives alone.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest

from llmserve.engine import Grammar, SamplingParams
from llmserve.errors import QueueFullError
from tests.fakes import Collector, FakeExecutor, FakeGrammar, make_core, run_alone, scores_of

WORKLOADS = 1000
BATCHES = 10


def random_params(rng: random.Random, vocab_size: int) -> SamplingParams:
    scored, n = rng.choice([None, None, None, 0]), rng.choice([1, 1, 1, 2, 3])
    return SamplingParams(
        max_tokens=rng.choice([1, 5, 12, 20, 30, None, *([0] if n == 1 and scored == 0 else [])]),
        prompt_logprobs=scored,
        temperature=rng.choice([0.0, 1.0]),
        seed=rng.randrange(2**64),
        n=n,
        stop=tuple(rng.sample(["aab", "ca", "bcbc", "é", "c a", "cc"], rng.choice([0, 0, 0, 1, 2]))),
        stop_token_ids=tuple(rng.sample(range(vocab_size), rng.choice([0, 0, 0, 1]))),
        ignore_eos=rng.random() < 0.3,
        min_tokens=rng.choice([0, 0, 0, 3]),
        grammar=Grammar("lark", str(rng.randrange(100))) if rng.random() < 0.3 else None,
    )


def compiled(params: SamplingParams, vocab_size: int, eos: frozenset[int]) -> FakeGrammar | None:
    """The fake that stands for the parameters' grammar."""
    return FakeGrammar(vocab_size, min(eos, default=None), int(params.grammar.value)) if params.grammar else None


def run_workload(seed: int) -> Counter[str]:
    rng = random.Random(seed)
    page_size, max_model_len = rng.choice([1, 2, 3, 4, 8]), rng.choice([12, 24, 48])
    executor = FakeExecutor(
        num_pages=max(2, int(max_model_len / page_size * rng.choice([0.7, 1.0, 1.3, 1.6, 2.0, 8.0]))),
        page_size=page_size,
        max_model_len=max_model_len,
        vocab_size=rng.choice([11, 64, 64]),
    )
    eos = frozenset(rng.sample(range(executor.vocab_size), rng.choice([0, 0, 1, 2])))
    max_num_seqs = rng.choice([1, 2, 4, 8])
    core = make_core(
        executor,
        eos=tuple(eos),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + rng.choice([0, 1, 3, 7, 40]),
        prefix_caching=rng.random() < 0.8,
        max_waiting=rng.choice([8, 100]),
    )
    stems = [[rng.randrange(executor.vocab_size) for _ in range(core.max_model_len)] for _ in range(2)]
    asked: dict[str, tuple[list[int], SamplingParams]] = {}
    aborted: set[str] = set()
    told = Collector()
    arrivals = rng.randrange(1, 11)
    hurry = rng.choice([0.1, 0.5, 1.0])
    patience = rng.choice([0.0, 0.0, 0.05])
    steps = 0
    while core.has_work() or len(asked) < arrivals:
        while len(asked) < arrivals and (rng.random() < hurry or not core.has_work()):
            shared = rng.randrange(core.max_model_len // rng.choice([1, 2, 4]) + 1)
            stem = rng.choice(stems)[:shared]
            own = [rng.randrange(executor.vocab_size) for _ in range(rng.choice([0, 1, 5]))]
            prompt = (stem + own)[: core.max_model_len - 1] or [0]
            name, params = f"r{len(asked)}", random_params(rng, executor.vocab_size)
            try:
                core.add_request(name, prompt, params, compiled(params, executor.vocab_size, eos))
            except QueueFullError:
                break
            asked[name] = (prompt, params)
        told.take(core.step())
        core.scheduler.check_integrity()
        for name in asked:
            if rng.random() < patience:
                output = core.abort(name)
                core.scheduler.check_integrity()
                if output is not None:
                    assert output.finished
                    told.take([output])
                    aborted.add(name)
        steps += 1
        assert steps < 5000, "no progress"

    answers = told.answers()
    for name, (prompt, params) in asked.items():
        assert told.finished[name]
        if answers[name][0].finish_reason != "abort":
            scores = None if params.prompt_logprobs is None else scores_of(prompt)
            assert told.prompt_logprobs.get(name) == scores, f"the scores of {name}"
        assert set(answers[name]) == set(range(params.n))
        for index, answer in answers[name].items():
            alone = run_alone(
                prompt,
                params,
                index,
                max_model_len=core.max_model_len,
                vocab_size=executor.vocab_size,
                eos_token_ids=eos,
                grammar=compiled(params, executor.vocab_size, eos),
            )
            if answer.finish_reason == "abort":
                assert name in aborted
                assert answer.token_ids == alone.token_ids[: len(answer.token_ids)]
                # What was held back is shown at the end, so the last few characters may go another way.
                visible = answer.text.rstrip("�")
                assert alone.text.startswith(visible) or visible.startswith(alone.text)
            else:
                assert answer == alone, f"choice {index} of {name}"

    stats = core.stats()
    assert executor.max_tokens_seen <= core.scheduler.config.max_num_batched_tokens
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.num_available_pages == stats.num_pages
    assert sum(stats.finished.values()) == sum(p.n for _, p in asked.values())
    assert stats.num_generated_tokens == sum(len(a.token_ids) for c in answers.values() for a in c.values())
    assert not core.scheduler.requests and not core._detokenizers
    return Counter(
        preemptions=stats.num_preemptions,
        prefix_hits=stats.prefix_hits,
        forced=executor.num_forced,
        scored=len(told.prompt_logprobs),
        **{f"ended: {reason}": count for reason, count in stats.finished.items()},
    )


@pytest.mark.parametrize("batch", range(BATCHES))
def test_scheduling_does_not_change_tokens(batch: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(batch * WORKLOADS // BATCHES, (batch + 1) * WORKLOADS // BATCHES):
        try:
            seen += run_workload(seed)
        except AssertionError as error:
            raise AssertionError(f"workload {seed}: {error}") from error
    # The workloads are worth nothing if they miss the hard cases.
    wanted = {"preemptions": 20, "prefix_hits": 500, "forced": 100, "scored": 50, "ended: abort": 5}
    for what, least in wanted.items():
        assert seen[what] >= least, f"only {seen[what]} {what}"
    assert min(seen["ended: stop"], seen["ended: length"]) >= 50
