"""Prompts scored through /v1/completions: echo with logprobs, as evaluation harnesses ask, whole and streamed."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from tests.api.server import MODEL, Executor, Running, serve
from tests.fakes import scores_of

PATH = "/v1/completions"
PROMPT = "hello wörld"


def lists_of(choice: dict[str, Any]) -> list[tuple[Any, ...]]:
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    assert set(choice["logprobs"]) == set(names)
    return list(zip(*(choice["logprobs"][name] for name in names), strict=True))


@pytest.fixture(scope="module")
def small_steps() -> Any:
    """A server whose steps are so small that prompts come in chunks, with pages to share."""
    with serve(executor=Executor(step_seconds=0.0), limits={"max_num_batched_tokens": 16}) as running:
        yield running


@pytest.mark.parametrize("as_ids", [False, True])
def test_a_harness_scores_a_prompt(small_steps: Running, as_ids: bool) -> None:
    ids = small_steps.tokenizer.encode(PROMPT * 4)
    prompt: Any = ids if as_ids else PROMPT * 4
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0, "seed": 1}
    for _ in range(2):  # the second time, the prefix cache has it all
        (choice,) = small_steps.post(PATH, body).json()["choices"]
        entries = lists_of(choice)
        assert len(entries) == len(ids) + 1
        assert choice["text"].startswith(PROMPT * 4)
        assert entries[0][1:] == (None, None, 0)
        for (token, logprob, top, offset), score in zip(entries[1:-1], scores_of(ids), strict=True):
            assert logprob == pytest.approx(score.logprob)
            assert top[token] == logprob
            if not token.startswith("bytes:"):
                assert choice["text"][offset:].startswith(token)
        assert entries[-1][1] == -0.5
        assert entries[-1][3] == len(PROMPT * 4)
    small_steps.wait_until_idle()


def test_nothing_need_follow(server: Running) -> None:
    body = {"model": MODEL, "prompt": [PROMPT, "other"], "max_tokens": 0, "logprobs": 0, "echo": True}
    answer = server.post(PATH, body).json()
    assert [c["text"] for c in answer["choices"]] == [PROMPT, "other"]
    assert [c["finish_reason"] for c in answer["choices"]] == ["length", "length"]
    for choice, text in zip(answer["choices"], (PROMPT, "other"), strict=True):
        ids = server.tokenizer.encode(text)
        assert [p for _, p, _, _ in lists_of(choice)] == [None, *(pytest.approx(s.logprob) for s in scores_of(ids))]
    assert answer["usage"]["completion_tokens"] == 0
    for extra in ({}, {"echo": True}, {"logprobs": 3}):
        (choice,) = server.post(PATH, {"prompt": PROMPT, "max_tokens": 0, **extra}).json()["choices"]
        assert choice["text"] == (PROMPT if "echo" in extra else "")
        assert choice["logprobs"] is None


def test_a_prompt_may_fill_the_whole_context_if_nothing_follows(server: Running) -> None:
    ids = [5] * 512
    body = {"prompt": ids, "echo": True, "logprobs": 0}
    assert len(lists_of(server.post(PATH, {**body, "max_tokens": 0}).json()["choices"][0])) == 512
    assert server.post(PATH, {**body, "max_tokens": 1}).status_code == 400
    assert server.post(PATH, {**body, "prompt": [*ids, 5], "max_tokens": 0}).status_code == 400


@pytest.mark.parametrize("max_tokens", [0, 6])
def test_streamed_it_comes_to_the_same(small_steps: Running, max_tokens: int) -> None:
    n = 1 if max_tokens == 0 else 3
    body = {"prompt": [PROMPT * 3, "ab"], "max_tokens": max_tokens, "logprobs": 2, "echo": True, "seed": 4, "n": n}
    whole = small_steps.post(PATH, body).json()
    pieces: dict[int, list[dict[str, Any]]] = {}
    with small_steps.http.stream("POST", PATH, json={**body, "stream": True}) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    assert pieces or choice["index"] == 0
                    pieces.setdefault(choice["index"], []).append(choice)
    assert sorted(pieces) == [choice["index"] for choice in whole["choices"]] == list(range(2 * n))
    for choice in whole["choices"]:
        its = pieces[choice["index"]]
        assert "".join(piece["text"] for piece in its) == choice["text"]
        assert [e for piece in its if piece["logprobs"] for e in lists_of(piece)] == lists_of(choice)
        assert its[-1]["finish_reason"] == choice["finish_reason"]


def test_offsets_count_characters_and_not_bytes(server: Running) -> None:
    body = {"prompt": "é€ x", "max_tokens": 8, "logprobs": 0, "echo": True, "seed": 9, "skip_special_tokens": False}
    (choice,) = server.post(PATH, body).json()["choices"]
    entries = lists_of(choice)
    assert [e[3] for e in entries[: len(server.tokenizer.encode("é€ x"))]] == [0, 1, 1, 1, 2, 3]
    assert all(a[3] <= b[3] <= len(choice["text"]) for a, b in pairwise(entries))


def test_abandoned_scores_are_dropped(small_steps: Running) -> None:
    body = {"prompt": [5] * 400, "max_tokens": 1, "logprobs": 0, "echo": True, "stream": True}
    for _ in range(3):
        with small_steps.http.stream("POST", PATH, json=body):
            pass
    small_steps.wait_until_idle()
