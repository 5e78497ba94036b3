"""The sampler against the obvious way of doing it, and against its own distribution."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llmserve.engine import SampledToken, SamplingParams
from llmserve.engine.plan.sequence import Request, Sequence
from llmserve.engine.run.choices import draw, kept
from llmserve.engine.run.sampler import Sampler, uniform
from llmserve.errors import EngineError


def sequence(prompt: list[int] | None = None, generated: list[int] | None = None, **params: object) -> Sequence:
    (it,) = Request("r", prompt or [0], SamplingParams(**params), 0).sequences
    it.token_ids += generated or []
    return it


def sample(row: np.ndarray, it: Sequence, eos: tuple[int, ...] = ()) -> SampledToken:
    (result,) = Sampler(eos).sample(row[None].astype(np.float32), [it])
    assert isinstance(result, SampledToken)
    return result


def oracle(row: np.ndarray, params: SamplingParams) -> np.ndarray:
    """Probabilities by full sort: temperature, min_p, top_k, top_p."""
    weights = np.exp((row.astype(np.float64) - row.max()) / params.temperature)
    weights[weights < params.min_p] = 0
    order = np.lexsort((np.arange(len(row)), -weights))
    if params.top_k > 0:
        weights[order[params.top_k :]] = 0
    if params.top_p < 1:
        falling = weights[order] / weights.sum()
        last = int(np.searchsorted(np.cumsum(falling), params.top_p))
        weights[order[last + 1 :]] = 0
    return weights / weights.sum()


def rows(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    peaked = rng.normal(size=size) * 2
    peaked[rng.integers(size, size=8)] += 12
    return {
        "flat": rng.normal(size=size) * 0.01,
        "normal": rng.normal(size=size),
        "peaked": peaked,
        "certain": np.where(np.arange(size) == 5, 50.0, 0.0),
        "ties": rng.integers(0, 4, size=size).astype(float),
        "masked": np.where(np.arange(size) % 7 != 3, -np.inf, rng.normal(size=size)),
    }


FILTERS = [
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 10**6},
    {"top_p": 0.1},
    {"top_p": 0.95},
    {"top_p": 0.9999},
    {"top_p": 1e-9},
    {"top_p": 0.0},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.9},
    {"top_k": 50, "top_p": 0.8, "min_p": 0.1},
    {"top_p": 0.9, "min_p": 0.2, "temperature": 3.0},
    {"top_p": 0.9, "temperature": 0.1},
]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("size", [7, 1000])
def test_the_filters_leave_what_a_full_sort_leaves(filters: dict[str, float], size: int) -> None:
    params = SamplingParams(**filters)
    for name, row in rows(np.random.default_rng(size), size).items():
        row = row.astype(np.float32)
        weights = np.exp((row - row.max()) / np.float32(params.temperature))
        ids, expected = kept(weights, params.top_k, params.top_p, params.min_p), np.flatnonzero(oracle(row, params))
        assert (np.diff(ids) > 0).all()
        # The two sum in different orders, so a nucleus may differ by one token where its border falls on a token's.
        # Both leave out tokens of no weight, but one of them may keep such where nothing is filtered.
        ids = ids[weights[ids] > 0]
        assert len(np.setxor1d(ids, expected)) <= (1 if 0 < params.top_p < 1 and size > 100 else 0), name


def test_nothing_likely_is_missed_at_a_large_vocabulary() -> None:
    params = SamplingParams(top_p=0.97)
    for row in rows(np.random.default_rng(3), 50_000).values():
        weights = np.exp(row.astype(np.float32) - np.float32(row.max()))
        ids = kept(weights, params.top_k, params.top_p, params.min_p)
        total = weights.sum(dtype=np.float64)
        mass = weights[ids].sum(dtype=np.float64) / total
        assert mass >= 0.97 - 1e-5 and mass - weights[ids].min() / total <= 0.97 + 1e-5
        assert weights[ids].min() >= np.delete(weights, ids).max(initial=0)


@pytest.mark.parametrize("filters", [{}, {"temperature": 0.5}, *FILTERS[4:5], *FILTERS[8:12:3]], ids=str)
def test_tokens_come_as_often_as_they_should(filters: dict[str, float]) -> None:
    params = SamplingParams(seed=1, **filters)
    row = np.array([2.0, 1.0, 0.5, 0.0, -1.0, 1.5, -np.inf, 0.2])
    expected, draws = oracle(row, params), 8_000
    it = sequence(seed=1, **filters)
    tokens = []
    for position in range(draws):
        it.seed = position * 7919
        tokens.append(sample(row, it).token_id)
    counts = np.bincount(tokens, minlength=8)
    assert counts[expected == 0].sum() == 0
    likely = expected > 0
    chi2 = ((counts[likely] - draws * expected[likely]) ** 2 / (draws * expected[likely])).sum()
    assert chi2 < 30  # 7 degrees of freedom: one in ten thousand


def test_draw_inverts_the_cumulative_sum() -> None:
    weights = np.random.default_rng(0).random(5000).astype(np.float32)
    weights[::3] = 0
    total = np.cumsum(weights, dtype=np.float64)
    for u in [0.0, 0.25, 0.5, 0.999, 1 - 2**-53, *np.random.default_rng(1).random(500)]:
        at = draw(weights, u)
        assert weights[at] > 0
        assert abs(total[at] - u * total[-1]) <= 1 + 1e-2
    assert draw(np.array([0, 0, 1, 0], np.float32), 1 - 2**-53) == 2
    trailing = np.zeros(2000, np.float32)
    trailing[3] = 1e-30
    assert draw(trailing, 0.7) == 3


def test_random_numbers_are_uniform_and_belong_to_seed_and_position() -> None:
    values = np.array([uniform(seed, position) for seed in range(100) for position in range(100)])
    assert values.min() >= 0 and values.max() < 1 and len(set(values)) == 10_000
    assert abs(values.mean() - 0.5) < 0.02 and abs(values.var() - 1 / 12) < 0.005
    grid = values.reshape(100, 100)
    assert abs(np.corrcoef(grid[:-1].ravel(), grid[1:].ravel())[0, 1]) < 0.05
    assert uniform(5, 9) == uniform(5, 9) != uniform(9, 5)


def test_a_row_does_not_depend_on_its_company() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 500)).astype(np.float32)
    settings: list[dict[str, float]] = [{}, {"top_p": 0.5}, {"temperature": 0.0}, {"top_k": 3}, {"min_p": 0.1}, {}]
    batch = [sequence(seed=i, generated=[1, 2, 3], **p) for i, p in enumerate(settings)]
    together = Sampler().sample(logits, batch)
    alone = [Sampler().sample(logits[i : i + 1], batch[i : i + 1])[0] for i in range(6)]
    backwards = Sampler().sample(logits[::-1].copy(), batch[::-1])[::-1]
    assert together == alone == backwards


def test_greedy_takes_the_first_of_the_best_and_leaves_the_logits_alone() -> None:
    logits = np.array([[1, 3, 3, 2], [0, 0, -1, 0]], np.float32)
    before = logits.copy()
    first, second = Sampler().sample(logits, [sequence(temperature=0), sequence(temperature=0, logit_bias={2: 5.0})])
    assert (first, second) == (SampledToken(1), SampledToken(2))
    assert (logits == before).all()


def test_a_plain_greedy_batch_is_nothing_but_argmax(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("exp", "sort", "partition", "argpartition", "flatnonzero", "cumsum"):
        monkeypatch.setattr(np, name, None)
    logits = np.array([[1, 3, 2]], np.float32)
    assert Sampler().sample(logits, [sequence(temperature=0)]) == [SampledToken(1)]


def test_logit_bias() -> None:
    row = np.array([0.0, 5.0, 0.0])
    assert sample(row, sequence(temperature=0, logit_bias={1: -100.0, 2: 1.0})).token_id == 2
    assert sample(row, sequence(seed=3, logit_bias={0: 100.0})).token_id == 0


def test_presence_and_frequency_penalties_count_generated_tokens_only() -> None:
    row = np.array([1.0, 0.9, 0.8])
    assert sample(row, sequence([0, 0, 0], [], temperature=0, presence_penalty=2.0)).token_id == 0
    assert sample(row, sequence([0], [0], temperature=0, presence_penalty=0.15)).token_id == 1
    assert sample(row, sequence([0], [0, 1], temperature=0, presence_penalty=2.0)).token_id == 2
    thrice = sequence([2], [0, 0, 0, 1], temperature=0, frequency_penalty=0.07)
    assert sample(row, thrice).token_id == 1
    assert sample(row, sequence([2], [2], temperature=0, frequency_penalty=-1.0)).token_id == 2


def test_repetition_penalty_counts_the_prompt_once() -> None:
    row = np.array([2.0, -1.0, 1.5, -1.5])
    assert sample(row, sequence([0, 0, 0], temperature=0, repetition_penalty=1.25)).token_id == 0  # 1.6
    assert sample(row, sequence([0], [0], temperature=0, repetition_penalty=1.5)).token_id == 2  # 1.33
    negative = np.array([-1.0, -1.5])
    assert sample(negative, sequence([0], temperature=0, repetition_penalty=2.0)).token_id == 1


def test_min_tokens_bans_every_end() -> None:
    row = np.array([9.0, 8.0, 1.0])
    params: dict[str, object] = {"temperature": 0, "min_tokens": 2, "stop_token_ids": (1,)}
    assert sample(row, sequence([2], [2], **params), eos=(0,)).token_id == 2
    assert sample(row, sequence([2], [2, 2], **params), eos=(0,)).token_id == 0
    assert sample(row, sequence([2], [], ignore_eos=True, **params), eos=(0,)).token_id == 0


def test_logprobs_are_the_models_own() -> None:
    row = np.array([1.0, 3.0, 2.0, 2.0, -np.inf])
    expected = row - (3 + math.log(np.exp(row - 3).sum()))
    for params in ({"temperature": 0.0}, {"temperature": 2.0, "top_k": 1}, {"temperature": 0, "logit_bias": {0: 1.0}}):
        result = sample(row, sequence(logprobs=3, seed=0, **params)).logprob
        assert result is not None and result.token_id == 1
        assert result.logprob == pytest.approx(expected[1], abs=1e-6)
        assert [i for i, _ in result.top] == [1, 2, 3]
        assert [p for _, p in result.top] == pytest.approx(expected[[1, 2, 3]], abs=1e-6)
    none = sample(row, sequence(logprobs=0, temperature=0)).logprob
    assert none is not None and none.top == ()
    assert sample(row, sequence(temperature=0)).logprob is None
    chosen = sample(row, sequence(temperature=0, logprobs=1, logit_bias={0: 100.0})).logprob
    assert chosen is not None and chosen.token_id == 0 and chosen.top[0][0] == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("params", [{"temperature": 0}, {"top_p": 0.9}, {}, {"logprobs": 2}], ids=str)
def test_unusable_logits_fail_their_row_and_no_other(bad: float, params: dict[str, object]) -> None:
    logits = np.zeros((3, 50), np.float32)
    logits[1, 30] = bad
    logits[2] = -np.inf
    sick, *_ = results = Sampler().sample(logits[[1, 0, 2]], [sequence(**params) for _ in range(3)])
    assert isinstance(sick, EngineError) and "not finite" in str(sick)
    assert isinstance(results[1], SampledToken) and isinstance(results[2], EngineError)


def test_extreme_logits_give_no_warning_and_no_nan(recwarn: pytest.WarningsRecorder) -> None:
    row = np.full(600, np.finfo(np.float32).min)
    row[7] = 1e4
    for params in ({"temperature": 0.01}, {"temperature": 0.01, "top_p": 0.5}, {"temperature": 1e4, "top_k": 5}):
        assert 0 <= sample(row, sequence(seed=1, logprobs=5, **params)).token_id < 600
    assert sample(row, sequence(temperature=0.01)).token_id == 7
    assert not recwarn.list


def test_half_precision_is_taken() -> None:
    (result,) = Sampler().sample(np.array([[0, 1]], np.float16), [sequence(top_p=0.5)])
    assert result == SampledToken(1)


class Scripted:
    """A matcher that allows these tokens, in this order, or fails."""

    def __init__(self, *allowed: set[int], fails: str | None = None) -> None:
        self.allowed = list(allowed)
        self.fails = fails
        self.accepted: list[int] = []

    def mask(self) -> bytes:
        if self.fails == "mask":
            raise EngineError("too complex")
        return sum(1 << i for i in self.allowed[0]).to_bytes(4, "little")

    def accept(self, token_id: int) -> tuple[int, ...]:
        if self.fails == "accept":
            raise EngineError("too complex")
        self.accepted.append(token_id)
        return (7, 8)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammar_rules_out_tokens_of_its_own_row_only(temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 40)).astype(np.float32)  # more tokens than the mask has bits
    logits[:, 39] = 20.0
    settings = {"temperature": temperature, "seed": 3}
    its = [sequence(**settings) for _ in range(4)]
    free = Sampler().sample(logits, its)
    its[1].matcher = Scripted({3, 5})
    its[2].matcher = Scripted({3}, fails="mask")
    its[3].matcher = Scripted({3}, fails="accept")
    results = Sampler().sample(logits, its)
    assert results[0] == free[0]
    assert isinstance(results[1], SampledToken)
    assert results[1].token_id in (3, 5)
    assert results[1].forced == (7, 8)
    assert its[1].matcher.accepted == [results[1].token_id]
    assert [str(r) for r in results[2:]] == ["too complex"] * 2


def test_a_grammar_that_only_allows_the_end_overrides_min_tokens() -> None:
    row = np.zeros(32)
    it = sequence(temperature=0.0, min_tokens=5)
    it.matcher = Scripted({2})
    assert sample(row, it, eos=(2,)).token_id == 2
    it.matcher = Scripted({2, 9})
    assert sample(row, it, eos=(2,)).token_id == 9


def test_logprobs_under_a_grammar_are_the_models_own() -> None:
    row = np.zeros(32)
    row[1] = 5.0
    it = sequence(temperature=0.0, logprobs=1)
    it.matcher = Scripted({4})
    scored = sample(row, it).logprob
    assert scored is not None
    assert scored.token_id == 4
    assert scored.logprob == pytest.approx(-math.log(31 + math.exp(5.0)), abs=1e-6)
    assert scored.top[0][0] == 1


class Broken:
    """A matcher that fails in one of its calls, by an error of ours, one of Python's, or a panic."""

    def __init__(self, call: str, error: BaseException) -> None:
        self._call, self._error = call, error

    def mask(self) -> bytes:
        return self._result("mask", b"\xff" * 4)

    def accept(self, token_id: int) -> tuple[int, ...]:
        return self._result("accept", ())

    def _result(self, call: str, result: Any) -> Any:
        if call == self._call:
            raise self._error
        return result


class Panic(BaseException):
    """As extensions in Rust raise them."""


def _strange(**fields: Any) -> Sequence:
    """A sequence whose parameters nobody has checked."""
    it = sequence()
    for name, value in fields.items():
        object.__setattr__(it.request.params, name, value)
    return it


@pytest.mark.parametrize(
    "make",
    [
        lambda: _strange(top_k="many"),
        lambda: _strange(temperature=None),
        lambda: _strange(temperature="hot"),
        lambda: _strange(logit_bias={2**40: 1.0}),
        lambda: _strange(logit_bias={1: "x"}),
        lambda: _strange(repetition_penalty="x"),
        lambda: _strange(logprobs="x"),
        lambda: _strange(min_tokens="x"),
    ],
)
def test_a_row_that_cannot_be_prepared_fails_alone(make: Callable[[], Sequence]) -> None:
    logits = np.random.default_rng(1).normal(size=(3, 16)).astype(np.float32)
    others = [sequence(seed=1), sequence(seed=2, repetition_penalty=1.3)]
    alone = [sample(row, it) for row, it in zip(logits[[0, 2]], others, strict=True)]
    sampler = Sampler()
    for _ in range(2):  # also as the batch that goes on
        first, broken, last = sampler.sample(logits, [others[0], make(), others[1]])
        assert isinstance(broken, EngineError) and [first, last] == alone


@pytest.mark.parametrize("call", ["mask", "accept"])
@pytest.mark.parametrize("error", [EngineError("no"), ValueError("no"), Panic("no")])
def test_a_matcher_that_fails_takes_its_row_only(call: str, error: BaseException) -> None:
    logits = np.random.default_rng(1).normal(size=(2, 16)).astype(np.float32)
    broken, other = sequence(), sequence(seed=1)
    broken.matcher = Broken(call, error)
    first, second = Sampler().sample(logits, [broken, other])
    assert isinstance(first, EngineError) and "no" in str(first)
    assert second == sample(logits[1], other)


@pytest.mark.parametrize("top_k", [16, 17, 2**31 - 1, 2**31, 2**63, 10**30])
def test_a_top_k_of_the_whole_vocabulary_is_none(top_k: int) -> None:
    batch = Sampler().prepare([sequence(top_k=top_k), sequence(top_k=15)], 16)
    assert batch.choices.limits[:, 0].tolist() == [0, 15]
