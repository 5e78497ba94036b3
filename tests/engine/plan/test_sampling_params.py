"""Numbers that sampling is given: every one comes out in bounds, or is refused with the name of its field."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmserve.config import sampling_defaults
from llmserve.engine import SamplingParams, recommended
from llmserve.engine.plan.sampling_params import MAX_COUNT, MAX_LOGIT_BIAS, MAX_STOP_TOKEN_IDS
from llmserve.engine.plan.sequence import Request
from llmserve.engine.run.sampler import uniform
from llmserve.errors import ConfigError, RequestError

NUMBERS = (
    *(0, -0.0, 1, -1, -2, 0.5, 50.0, 5e-324, 1e-308, 1e-40, 1e-5, 1e5, 3.5e38, 1e308, -1e-320, math.nan, math.inf),
    *(-math.inf, True, 2**31 - 1, 2**31, 2**32, 2**63, 2**64 - 1, 2**64, 10**400, -(2**31) - 1, -(10**400), 10**5000),
    *(np.int64(7), np.float32(0.5), "0.5", "nan", None, [1], {}),
)
FLOATS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
COUNTS = ("max_tokens", "top_k", "min_tokens", "n", "logprobs", "prompt_logprobs")


@pytest.mark.parametrize("name", [*FLOATS, *COUNTS, "seed"])
def test_every_number_is_in_bounds_or_refused(name: str) -> None:
    for value in NUMBERS:
        try:
            kept = getattr(SamplingParams(**{name: value}), name)
        except RequestError as error:
            assert error.param == name and name in str(error).replace("alternatives per token", name), value
            continue
        if name in FLOATS:
            assert math.isfinite(np.float32(kept)), value
        elif kept is not None:
            assert type(kept) is int and (name == "seed" or -1 <= kept <= MAX_COUNT), value


@pytest.mark.parametrize("value", [1e-308, 5e-324, 1e-40, 1e-5, 0.0, -0.0, -1.0, 1e5, 1e300, math.nan, math.inf])
def test_a_repetition_penalty_that_would_make_logits_infinite(value: float) -> None:
    with pytest.raises(RequestError, match="repetition_penalty must be between"):
        SamplingParams(repetition_penalty=value)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"logit_bias": {1: math.nan}}, "nan"),
        ({"logit_bias": {1: math.inf}}, "inf"),
        ({"logit_bias": {1: 100.5}}, "100.5"),
        ({"logit_bias": {-1: 1.0}}, "-1: 1.0"),
        ({"logit_bias": {1.5: 1.0}}, "1.5"),
        ({"logit_bias": {1: "1"}}, "'1'"),
        ({"logit_bias": dict.fromkeys(range(MAX_LOGIT_BIAS + 1), 1.0)}, f"{MAX_LOGIT_BIAS} token ids"),
        ({"stop_token_ids": range(MAX_STOP_TOKEN_IDS + 1)}, f"at most {MAX_STOP_TOKEN_IDS}"),
        ({"stop_token_ids": [-1]}, "-1"),
        ({"stop_token_ids": [1.5]}, "1.5"),
        ({"stop": ["a"] * 17}, "stop strings"),
    ],
)
def test_lists_and_maps_of_numbers(extra: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**extra)
    assert words in str(caught.value) and caught.value.param in extra


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"top_k": 2147483648, "temperature": 0.5}', None),
        ('{"top_k": 50.0, "top_p": null}', None),
        ('{"temperature": NaN}', "temperature must be between"),
        ('{"temperature": 1e999}', "temperature must be between"),
        ('{"repetition_penalty": 1e-308}', "repetition_penalty must be between"),
        ('{"top_p": "0.9"}', "top_p must be between"),
        ('{"min_p": [0.1]}', "min_p must be between"),
        ('{"top_k": 1.5}', "top_k must be a whole number"),
        ('{"top_k": -5}', "top_k must be"),
        ('{"temperature": 1' + "0" * 5000 + "}", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "must hold a JSON object, not list"),
        ("3", "must hold a JSON object, not int"),
    ],
)
def test_what_a_checkpoint_recommends(tmp_path: Path, text: str, complaint: str | None) -> None:
    file = tmp_path / "generation_config.json"
    file.write_text(text)
    if complaint is None:
        wanted = {name: value for name, value in json.loads(text).items() if value is not None}
        kept = recommended(sampling_defaults(tmp_path), str(file))
        assert kept == {name: min(value, MAX_COUNT) for name, value in wanted.items()}
        assert all(type(value) is int for name, value in kept.items() if name == "top_k")
        return
    with pytest.raises(ConfigError, match=complaint) as caught:
        recommended(sampling_defaults(tmp_path), str(file))
    assert "generation_config.json" in str(caught.value)


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**64 - 1, 2**64, 10**299, -(10**299)])
def test_seeds_of_any_size_come_to_64_bits(seed: int) -> None:
    for sequence in Request("r", [0], SamplingParams(seed=seed, n=2), 0).sequences:
        assert 0 <= sequence.seed < 2**64 and 0 <= uniform(sequence.seed, 5) < 1
