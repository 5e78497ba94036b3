"""Fields of other servers' clients that change an answer: honoured, or refused by their name, in every endpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from llmserve.api.base.state import Serving
from llmserve.engine import SamplingParams
from llmserve.errors import RequestError

from .server import CONTEXT, Executor, Running, build, serve
from .test_hostile import refused
from .test_requests import BODY, CHAT, TEXT, error_of

PROMPT = {TEXT: {"prompt": "hello hello"}, CHAT: {"messages": BODY["messages"]}}


def chunks(server: Running, path: str, **extra: Any) -> list[dict[str, Any]]:
    response = server.post(path, {"max_tokens": 6, "seed": 3, "stream": True, **PROMPT[path], **extra})
    assert response.status_code == 200, response.text
    return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]


def text_of(choice: dict[str, Any]) -> str:
    text: str = choice.get("text") or choice.get("message", {}).get("content") or ""
    return text


# --- stop strings


@pytest.fixture(scope="module")
def saying() -> Iterator[Running]:
    with serve(executor=Executor(script=lambda prompt: "one STOP two", vocab_size=272)) as running:
        yield running


@pytest.mark.parametrize("path", [CHAT, TEXT, "/v1/responses"])
@pytest.mark.parametrize(
    ("stop", "shown", "whole"), [("STOP", "one STOP", "one "), (["x", "OP t"], "one STOP t", "one ST")]
)
def test_a_stop_string_is_part_of_the_text_where_that_is_wanted(
    saying: Running, path: str, stop: Any, shown: str, whole: str
) -> None:
    for include, text in ((True, shown), (False, whole), (None, whole)):
        body = {"stop": stop, "include_stop_str_in_output": include, **PROMPT.get(path, {"input": "a"})}
        answer = saying.post(path, body).json()
        said = answer["output"][0]["content"][0]["text"] if "output" in answer else text_of(answer["choices"][0])
        assert said == text
        if path in PROMPT:
            pieces = [c["choices"][0] for c in chunks(saying, path, **body, max_tokens=40)]
            assert "".join(p.get("text") or p.get("delta", {}).get("content") or "" for p in pieces) == text


def test_a_stop_token_too(saying: Running) -> None:
    (letter,) = saying.tokenizer.encode("S", False)
    for include, text in ((True, "one S"), (False, "one ")):
        body = {**PROMPT[TEXT], "stop_token_ids": [letter], "include_stop_str_in_output": include}
        assert saying.post(TEXT, body).json()["choices"][0]["text"] == text


# --- prompts that are cut


def test_the_last_tokens_of_a_prompt(server: Running) -> None:
    whole = server.tokenizer.encode("hello hello")
    for count, kept in ((2, 2), (1, 1), (None, len(whole)), (-1, len(whole)), (CONTEXT - 1, len(whole))):
        for prompt in ("hello hello", whole):
            body = {"prompt": prompt, "max_tokens": 1, "truncate_prompt_tokens": count, "echo": True}
            answer = server.post(TEXT, {**body, "return_token_ids": True}).json()
            assert answer["usage"]["prompt_tokens"] == kept
            assert answer["choices"][0]["prompt_token_ids"] == whole[-kept:]
            assert answer["choices"][0]["text"].startswith(server.tokenizer.decode(whole[-kept:]))
    body = {"prompt": [5] * 5000, "max_tokens": 1, "truncate_prompt_tokens": -1}
    assert server.post(TEXT, body).json()["usage"]["prompt_tokens"] == CONTEXT - 1
    assert server.post(CHAT, {**BODY, "truncate_prompt_tokens": 3}).json()["usage"]["prompt_tokens"] == 3
    for texts in (["hello hello", "a"], [whole, [1]]):
        body = {"input": texts, "truncate_prompt_tokens": 2}
        assert server.post("/v1/embeddings", body).json()["usage"]["prompt_tokens"] == 2 + 1
    body = {"input": "hello", "truncate_prompt_tokens": 4, "max_output_tokens": 2}
    assert server.post("/v1/responses", body).json()["usage"]["input_tokens"] == 4


@pytest.mark.parametrize("count", [0, -2, CONTEXT, 2**31, -(2**63), 10**30])
def test_counts_that_cannot_be(server: Running, count: int) -> None:
    for path in (CHAT, TEXT):
        body = {**PROMPT[path], "truncate_prompt_tokens": count}
        assert error_of(server.post(path, body))["param"] == "truncate_prompt_tokens"


# --- token ids


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_token_ids_whole_and_streamed(server: Running, path: str) -> None:
    body = {"max_tokens": 6, "seed": 3, "n": 2, "ignore_eos": True, **PROMPT[path]}
    plain = server.post(path, body).json()
    answer = server.post(path, {**body, "return_token_ids": True}).json()
    assert all("token_ids" not in choice for choice in plain["choices"]) and "prompt_token_ids" not in plain
    assert [text_of(c) for c in answer["choices"]] == [text_of(c) for c in plain["choices"]]
    prompt = answer["prompt_token_ids"] if path == CHAT else answer["choices"][0]["prompt_token_ids"]
    assert len(prompt) == answer["usage"]["prompt_tokens"]
    assert all(len(choice["token_ids"]) == 6 for choice in answer["choices"])
    streamed: dict[int, list[int]] = {0: [], 1: []}
    prompts = []
    for chunk in chunks(server, path, **body, return_token_ids=True):
        for choice in chunk["choices"]:
            streamed[choice["index"]] += choice.get("token_ids", [])
        prompts += [it["prompt_token_ids"] for it in (chunk, *chunk["choices"]) if "prompt_token_ids" in it]
    assert streamed == {c["index"]: c["token_ids"] for c in answer["choices"]}
    assert prompts and all(ids == prompt for ids in prompts)


# --- usage while streaming


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_usage_in_chunks(server: Running, path: str) -> None:
    without = chunks(server, path)
    assert not any("usage" in chunk for chunk in without)
    once = chunks(server, path, stream_options={"include_usage": True})
    assert [chunk["usage"] is None for chunk in once] == [True] * (len(once) - 1) + [False]
    assert once[-1]["choices"] == [] and all(chunk["choices"] for chunk in once[:-1])
    always = chunks(
        server, path, stream_options={"include_usage": True, "continuous_usage_stats": True}, ignore_eos=True
    )
    counts = [chunk["usage"]["completion_tokens"] for chunk in always]
    assert counts == sorted(counts) and counts[-1] == 6 and len(set(counts)) > 3
    assert {chunk["usage"]["prompt_tokens"] for chunk in always} == {always[-1]["usage"]["prompt_tokens"]}


# --- bad words


def test_bad_words_become_banned_tokens(server: Running) -> None:
    serving: Serving = build(Executor())[2]
    params = serving.with_banned(SamplingParams(), ["hello", " w"])
    encode = server.tokenizer.encode
    assert set(params.banned) == {tuple(encode(form, False)) for form in ("hello", " hello", " w")}
    assert serving.with_banned(SamplingParams(), []).banned == ()
    for words in ([""], ["a"] * 300, ["a" * 300]):
        with pytest.raises(RequestError, match="bad_words"):
            serving.with_banned(SamplingParams(), words)
    for path in PROMPT:
        assert error_of(server.post(path, {**PROMPT[path], "bad_words": [""]}))["param"] == "bad_words"
        assert server.post(path, {**PROMPT[path], "max_tokens": 2, "bad_words": ["hello", "é"]}).status_code == 200


# --- what is refused


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("echo", True),
        ("prompt_embeds", "AAAA"),
        ("mcp_servers", [{"type": "url", "url": "https://example.org", "name": "x"}]),
        ("modalities", ["text", "audio"]),
        ("modalities", ["image"]),
        ("chat_template", "{{ messages }}"),
        ("allowed_token_ids", [1, 2]),
        ("logits_processors", ["x"]),
        ("include_reasoning", False),
        ("spaces_between_special_tokens", False),
        ("return_tokens_as_token_ids", True),
        ("use_beam_search", True),
        ("prompt_logprobs", 1),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(server: Running, field: str, value: Any) -> None:
    bodies = {**PROMPT, "/v1/responses": {"input": "a"}, "/v1/messages": {**PROMPT[CHAT], "max_tokens": 2}}
    for path, body in bodies.items():
        if (path, field) == (TEXT, "echo"):
            continue
        error = refused(path, server.post(path, {**body, field: value}), 400)
        assert f"{field} is not supported" in error["message"]
        neutral = ["text"] if field == "modalities" else None
        assert server.post(path, {"max_output_tokens": 2, **body, "max_tokens": 2, field: neutral}).status_code == 200


@pytest.mark.parametrize(
    "extra", [{"guided_regex": "[ab]{3}"}, {"guided_choice": ["aaa", "bbb"]}, {"guided_json": {"const": 1}}]
)
def test_ways_to_ask_for_a_format_reach_every_endpoint(server: Running, extra: dict[str, Any]) -> None:
    response = server.post("/v1/responses", {"input": "a", **extra}).json()
    message = server.post("/v1/messages", {**PROMPT[CHAT], "max_tokens": 20, **extra}).json()
    for text in (response["output"][0]["content"][0]["text"], message["content"][0]["text"]):
        assert text == "1" or (len(text) == 3 and set(text) <= set("ab"))
