"""Scoring prompts: every token's log-probability, however the prompt is cut, and the token that follows unchanged."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llmserve.engine import SampledToken, SamplingParams, Scored
from llmserve.engine.plan.scheduler import ScheduledSequence
from llmserve.engine.plan.sequence import Request
from llmserve.engine.run.sampler import Sampler
from llmserve.engine.run.scorer import Scorer
from llmserve.errors import EngineError, RequestError

VOCAB, HIDDEN = 11, 4
HEAD = np.random.default_rng(0).standard_normal((HIDDEN, VOCAB)).astype(np.float32)
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
STATES = np.random.default_rng(1).standard_normal((len(PROMPT), HIDDEN)).astype(np.float32)


def head(states: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    assert len(states) <= 3
    return states @ HEAD


def run(chunks: list[int], **params: Any) -> Any:
    scorer = Scorer(head, 3, Sampler())
    (sequence,) = Request("r", PROMPT, SamplingParams(**params), 7).sequences
    result = None
    for count in chunks:
        assert sequence.is_scoring
        done = sequence.num_computed_tokens
        plan = [ScheduledSequence(sequence, count)]
        result = scorer.score(plan, STATES[done : done + count]).get(7)
        sequence.num_computed_tokens += count
    assert not scorer._scores
    return result


@pytest.mark.parametrize("chunks", [[8], [1] * 8, [3, 5], [7, 1], [2, 4, 2]])
@pytest.mark.parametrize("max_tokens", [0, 5])
def test_scores_do_not_depend_on_chunks(chunks: list[int], max_tokens: int) -> None:
    result = run(chunks, prompt_logprobs=2, max_tokens=max_tokens, temperature=0.0)
    logits = (STATES @ HEAD).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert [s.token_id for s in result.prompt_logprobs] == PROMPT[1:]
    for score, row in zip(result.prompt_logprobs, expected, strict=False):
        assert score.logprob == pytest.approx(row[score.token_id], abs=1e-5)
        assert [i for i, _ in score.top] == list(np.argsort(-row)[:2])
    if max_tokens:
        assert isinstance(result, SampledToken)
        assert result.token_id == int(logits[-1].argmax())
    else:
        assert isinstance(result, Scored)


def test_a_prompt_that_starts_over_is_scored_once() -> None:
    scorer = Scorer(head, 3, Sampler())
    (sequence,) = Request("r", PROMPT, SamplingParams(prompt_logprobs=0, max_tokens=0), 7).sequences
    scorer.score([ScheduledSequence(sequence, 5)], STATES[:5])
    result = scorer.score([ScheduledSequence(sequence, 8)], STATES)[7]
    assert isinstance(result, Scored)
    assert len(result.prompt_logprobs) == 7
    scorer.score([ScheduledSequence(sequence, 5)], STATES[:5])
    scorer.forget([7, 8])
    assert not scorer._scores


def test_logits_that_are_not_finite_end_the_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = STATES.copy()
    broken[2, 0] = np.nan
    monkeypatch.setitem(globals(), "STATES", broken)
    assert isinstance(run([4, 4], prompt_logprobs=0, max_tokens=0), EngineError)


def test_what_cannot_be_scored() -> None:
    with pytest.raises(RequestError, match="at least 1"):
        SamplingParams(max_tokens=0)
    with pytest.raises(RequestError, match="n must be 1"):
        SamplingParams(max_tokens=0, prompt_logprobs=0, n=2)
    with pytest.raises(RequestError, match="at most 20") as caught:
        SamplingParams(prompt_logprobs=21)
    assert caught.value.param == "prompt_logprobs"
