"""Logit adjustments that are updated token by token, against those computed anew from all tokens."""

from __future__ import annotations

import random

import numpy as np
import pytest

from llmserve.engine import SamplingParams
from llmserve.engine.plan.sequence import Request, Sequence
from llmserve.engine.run.adjustments import Adjustments, adjusts
from llmserve.engine.run.choices import ChoiceArguments, adjusted
from llmserve.engine.run.sampler import Sampler

VOCAB = 50


def anew(raw: np.ndarray, sequence: Sequence, eos: list[int]) -> np.ndarray:
    """Bias, penalties and bans, one after the other."""
    params, row = sequence.request.params, raw.astype(np.float32)
    for token_id, bias in params.logit_bias.items():
        row[token_id] += np.float32(bias)
    if params.repetition_penalty != 1.0:
        for token_id in set(sequence.token_ids):
            penalty = np.float32(params.repetition_penalty)
            row[token_id] = row[token_id] / penalty if row[token_id] > 0 else row[token_id] * penalty
    generated = sequence.token_ids[sequence.num_prompt_tokens :]
    for token_id in set(generated):
        row[token_id] -= params.presence_penalty + params.frequency_penalty * np.float32(generated.count(token_id))
    if len(generated) < params.min_tokens:
        row[[*(() if params.ignore_eos else eos), *params.stop_token_ids]] = -np.inf
    return row


@pytest.mark.parametrize("seed", range(30))
def test_adjustments_keep_up(seed: int) -> None:
    rng = random.Random(seed)
    params = SamplingParams(
        repetition_penalty=rng.choice([1.0, 1.3, 0.8]),
        presence_penalty=rng.choice([0.0, 0.7]),
        frequency_penalty=rng.choice([0.0, -0.3, 1.1]),
        logit_bias={rng.randrange(VOCAB): rng.uniform(-5, 5) for _ in range(rng.choice([0, 3]))},
        min_tokens=rng.choice([0, 4]),
        stop_token_ids=(rng.randrange(VOCAB), 7),
        ignore_eos=rng.random() < 0.3,
    )
    (it,) = Request("r", [rng.randrange(VOCAB) for _ in range(rng.randint(1, 90))], params, 0).sequences
    eos = [3, 7]
    numbers = np.random.default_rng(seed)
    sampler = Sampler(eos)
    for _ in range(12):
        raw = numbers.standard_normal(VOCAB).astype(np.float32)
        choices: ChoiceArguments = sampler.prepare([it], VOCAB).choices
        assert len(set(choices.ids[1:])) == len(choices.ids) - 1
        np.testing.assert_allclose(adjusted(raw, choices.limits[0], choices), anew(raw, it, eos), rtol=1e-6)
        it.token_ids += [rng.randrange(VOCAB) for _ in range(rng.choice([1, 1, 3]))]  # a grammar may force some


def test_nothing_is_kept_where_nothing_is_asked() -> None:
    assert not adjusts(SamplingParams(top_k=3, top_p=0.5, stop_token_ids=(1,)))
    assert all(
        adjusts(SamplingParams(**setting))
        for setting in ({"min_tokens": 1}, {"logit_bias": {1: 1.0}}, {"presence_penalty": 0.1})
    )
    assert len(Adjustments(SamplingParams(min_tokens=2), [4, 4])) == 1


def test_a_sequence_that_comes_back_is_read_again() -> None:
    params = SamplingParams(frequency_penalty=1.0, temperature=0)
    first, second = (Request("r", [1], params, i).sequences[0] for i in range(2))
    sampler = Sampler()
    logits = np.zeros((1, VOCAB), np.float32)
    for it in (first, second, first, first):
        (result,) = sampler.sample(logits, [it])
        it.token_ids.append(result.token_id)
    assert first.token_ids == [1, 0, 1, 2] and second.token_ids == [1, 0]


def test_the_last_token_of_a_banned_sequence_follows_the_others_never() -> None:
    rng = np.random.default_rng(5)
    banned = ((1,), (2, 3), (2, 2, 4), (3, 3), (5, 1, 5, 1))
    params = SamplingParams(banned=banned, presence_penalty=0.5, logit_bias={3: 2.0})
    (sequence,) = Request("r", [2, 2], params, 0).sequences
    own = Adjustments(params, ())
    for _ in range(60):
        own.update(sequence)
        ids, amounts = np.zeros(len(own), np.int32), np.zeros((len(own), 3), np.float32)
        own.write(ids, amounts, banned=False)
        said = sequence.token_ids[2:]
        expected = {last for *before, last in banned if said[len(said) - len(before) :] == before or not before}
        assert {int(i) for i, less in zip(ids, amounts[:, 2], strict=True) if np.isinf(less)} == expected
        sequence.token_ids.append(int(rng.choice([i for i in range(6) if i not in expected])))
