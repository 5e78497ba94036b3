"""The sampling kernel against the numpy sampler: the same kept sets, and the same token for the same random number."""

from __future__ import annotations

import numpy as np
import pytest

from llmserve.engine.sampler import _kept
from llmserve.engine.sampling_params import SamplingParams
from llmserve.kernels.cpu.sampling import sample

from .harness import RUNNABLE, compiled

SETTINGS = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 100_000},
    {"top_p": 0.01},
    {"top_p": 0.5},
    {"top_p": 0.99},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"top_k": 40, "top_p": 0.9, "min_p": 0.01, "temperature": 0.8},
]


def rows_of_logits(rng, vocab):
    flat = rng.standard_normal(vocab)
    peaked = rng.standard_normal(vocab) * 6
    equal = np.zeros(vocab)
    coarse = np.round(rng.standard_normal(vocab) * 2)  # many ties
    banned = np.where(rng.random(vocab) < 0.5, -np.inf, flat)
    alone = np.full(vocab, -np.inf)
    alone[vocab // 3] = 4.0
    return np.stack([flat, peaked, equal, coarse, banned, alone]).astype(np.float32)


def mismatch(row, params, uniform, token):
    """How far `uniform` lies outside the stretch that `token` has on the cumulative sum of what is kept."""
    weights = np.exp((row - row.max()) / np.float32(params.temperature))
    kept = _kept(weights, params)
    kept = kept[weights[kept] > 0]
    if token not in kept:
        return 1.0
    ends = np.cumsum(weights[kept], dtype=np.float64)
    ends /= ends[-1]
    at = int(np.searchsorted(kept, token))
    begin = ends[at - 1] if at else 0.0
    return max(begin - uniform, uniform - ends[at], 0.0)


@pytest.mark.parametrize("isa", RUNNABLE, ids=lambda i: i.name)
@pytest.mark.parametrize("vocab", [37, 512, 3001])
def test_tokens_are_those_of_the_numpy_sampler(vocab, isa):
    kernel = compiled(sample("sample", vocab, isa), isa)
    rng = np.random.default_rng(0)
    for setting in SETTINGS:
        params = SamplingParams(**setting)
        logits = np.repeat(rows_of_logits(rng, vocab), 8, 0)
        count = len(logits)
        uniform = rng.random(count).astype(np.float32)
        uniform[0::8], uniform[1::8] = 0.0, np.float32(1 - 2**-24)
        tokens = np.full(count, -1, np.int32)

        def column(value, dtype=np.float32, count=count):
            return np.full(count, value, dtype)

        kernel(
            logits,
            column(1 / params.temperature),
            column(params.top_k, np.int32),
            column(params.top_p),
            column(params.min_p),
            uniform,
            tokens,
        )
        for row, u, token in zip(logits, uniform, tokens, strict=True):
            assert row[token] > -np.inf
            # float32 sums of at most 3001 weights are within 1e-5 of the float64 ones.
            assert mismatch(row, params, float(u), int(token)) <= 1e-5, (setting, u, token)


def test_frequencies_follow_the_distribution():
    isa, vocab, draws = RUNNABLE[0], 20, 40_000
    kernel = compiled(sample("sample", vocab, isa), isa)
    rng = np.random.default_rng(1)
    logits = np.tile(rng.standard_normal(vocab).astype(np.float32), (draws, 1))
    ones, tokens = np.ones(draws, np.float32), np.empty(draws, np.int32)
    kernel(logits, ones, np.zeros(draws, np.int32), ones, 0 * ones, rng.random(draws).astype(np.float32), tokens)
    p = np.exp(logits[0]) / np.exp(logits[0]).sum()
    expected = p * draws
    chi2 = ((np.bincount(tokens, minlength=vocab) - expected) ** 2 / expected).sum()
    assert chi2 < 45  # the 0.999 quantile at 19 degrees of freedom is 43.8; the seed is fixed
