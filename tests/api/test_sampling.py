"""Sampling fields over HTTP: biases, seeds in company, choices, and stop strings that tokens cut in two."""

from __future__ import annotations

import json
from collections.abc import Iterator
from collections.abc import Sequence as Items
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llmserve.engine.plan.sequence import Sequence
from tests.api.random_logits import RandomLogits
from tests.api.server import MODEL, Executor, Running, serve

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def noise() -> Iterator[Running]:
    with serve(executor=RandomLogits(), limits={"max_num_seqs": 8}) as running:
        yield running


@pytest.fixture(scope="module")
def spoken() -> Iterator[Running]:
    with serve(executor=Executor(script=lambda prompt: "hello world, hello é!")) as running:
        yield running


def body(path: str, **extra: Any) -> dict[str, Any]:
    prompt = {"messages": [{"role": "user", "content": "Hi"}]} if path == CHAT else {"prompt": "Hi"}
    return {"model": MODEL, "max_tokens": 40, **prompt, **extra}


def texts(server: Running, path: str, **extra: Any) -> list[str]:
    answer = server.post(path, body(path, **extra)).json()
    return [c["message"]["content"] if path == CHAT else c["text"] for c in answer["choices"]]


def streamed(server: Running, path: str, **extra: Any) -> tuple[str, list[Any]]:
    """The text of choice 0, and the reasons that it ended for."""
    text, ends = "", []
    with server.http.stream("POST", path, json=body(path, stream=True, **extra)) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    text += (choice["delta"].get("content") or "") if path == CHAT else choice["text"]
                    ends += [choice["stop_reason"]] if choice["finish_reason"] == "stop" else []
    return text, ends


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_logit_bias_forces_and_bans(noise: Running, path: str) -> None:
    (token,) = noise.tokenizer.encode("hello")
    for temperature in (0, 1):
        assert texts(noise, path, logit_bias={str(token): 100}, max_tokens=5, temperature=temperature) == ["hello" * 5]
    plain = texts(noise, path, seed=5, temperature=0)[0]
    first = noise.tokenizer.encode(plain)[0]
    banned = texts(noise, path, seed=5, temperature=0, logit_bias={str(first): -100})[0]
    assert noise.tokenizer.encode(banned)[:1] != [first]


@pytest.mark.parametrize("extra", [{}, {"guided_json": {}}, {"top_p": 0.8, "top_k": 40}, {"presence_penalty": 1.0}])
def test_a_seed_reproduces_whatever_else_is_in_the_batch(noise: Running, extra: dict[str, Any]) -> None:
    alone = [texts(noise, CHAT, seed=seed, **extra)[0] for seed in range(6)]
    assert len(set(alone)) > 3
    company: list[dict[str, Any]] = [
        {"temperature": 0, "ignore_eos": True},
        {"guided_regex": "[a-z]{30}"},
        {"logprobs": True, "top_logprobs": 3},
        {"n": 3, "stop": ["a"]},
        {"guided_json": {"type": "object"}},
    ]
    jobs = [{"seed": i, **extra} if i < 6 else {"seed": i, **company[i % len(company)]} for i in range(36)]
    order = sorted(range(len(jobs)), key=lambda i: i * 7 % 36)
    with ThreadPoolExecutor(12) as threads:
        answers = dict(zip(order, threads.map(lambda i: texts(noise, CHAT, **jobs[i]), order), strict=True))
    assert [answers[i][0] for i in range(6)] == alone


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_choices_have_random_numbers_of_their_own(noise: Running, path: str) -> None:
    once = texts(noise, path, seed=1, n=4)
    assert len(set(once)) == 4
    assert texts(noise, path, seed=1, n=4) == once
    assert texts(noise, path, seed=1) == once[:1]
    if path == COMPLETIONS:
        assert texts(noise, path, seed=1, n=4, best_of=4) == once


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("stop", "text", "found"),
    [
        ("lo w", "hel", "lo w"),  # "hello" and " w" are tokens
        (["never", "orld, he"], "hello w", "orld, he"),
        (["é!"], "hello world, hello ", "é!"),  # a character of two tokens
        (["hello é", "lo é"], "hello world, ", "hello é"),
        (["no such thing"], "hello world, hello é!", None),
    ],
)
def test_stop_strings_do_not_care_for_tokens(
    spoken: Running, path: str, stop: str | list[str], text: str, found: str | None
) -> None:
    (choice,) = spoken.post(path, body(path, stop=stop)).json()["choices"]
    assert (choice["message"]["content"] if path == CHAT else choice["text"]) == text
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", found)
    assert streamed(spoken, path, stop=stop) == (text, [found])


def test_a_suffix_is_put_around_the_middle() -> None:
    markers = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|endoftext|>"]
    seen: list[list[int]] = []

    class Filling(Executor):
        def choose(self, state: int, sequence: Sequence, allowed: Items[int] | None) -> int:
            seen.append(sequence.request.prompt_ids)
            return [*text, end][sequence.num_generated_tokens]

    with serve(executor=Filling(vocab_size=300), markers=markers) as running:
        tokenizer = running.tokenizer
        text = tokenizer.encode(" w", add_special_tokens=False)
        end = tokenizer.id_of("<|endoftext|>") or 0
        for prompt in ("hello", tokenizer.encode("hello")):
            wanted = {"prompt": prompt, "suffix": "ell", "echo": True}
            (choice,) = running.post(COMPLETIONS, body(COMPLETIONS, **wanted)).json()["choices"]
            assert tokenizer.decode(seen[-1], False) == "<|fim_prefix|>hello<|fim_suffix|>ell<|fim_middle|>"
            assert (choice["text"], choice["finish_reason"]) == ("hello w", "stop")


def test_a_suffix_needs_tokens_for_it(spoken: Running) -> None:
    assert spoken.post(COMPLETIONS, body(COMPLETIONS, suffix="")).status_code == 200
    response = spoken.post(COMPLETIONS, body(COMPLETIONS, suffix="x"))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "suffix"
