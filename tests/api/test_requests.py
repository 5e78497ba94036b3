"""Requests: the fields that are accepted, those that are refused, and the words of each refusal."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ..text import templates
from .server import CONTEXT, MODEL, Running, serve

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BODY: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}

EVERYTHING: dict[str, Any] = {
    "max_completion_tokens": 2,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "seed": 1,
    "n": 1,
    "stop": ["a"],
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "repetition_penalty": 1.1,
    "logit_bias": {"5": 1.0},
    "logprobs": True,
    "top_logprobs": 1,
    "response_format": {"type": "text"},
    "tools": [templates.TOOL],
    "tool_choice": "none",
    "parallel_tool_calls": True,
    "reasoning_effort": "low",
    "stream_options": {"include_usage": True},
    "user": "u",
    "metadata": {"a": "b"},
    "store": False,
    "service_tier": "auto",
    "prediction": {"type": "content", "content": "x"},
    "prompt_cache_key": "k",
    "safety_identifier": "s",
    "verbosity": "low",
    "chat_template_kwargs": {"enable_thinking": False},
    "never_heard_of": [1],
}


def error_of(response: Any, status: int | None = 400) -> dict[str, Any]:
    """The error of a response, checked to be in OpenAI's shape and nothing else."""
    assert 400 <= response.status_code < 500 if status is None else response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"error"} and body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize("name", [*EVERYTHING, "all"])
def test_fields_are_accepted(server: Running, name: str) -> None:
    needed = {"tools": ["tool_choice"], "top_logprobs": ["logprobs"]}.get(name, [])
    extra = EVERYTHING if name == "all" else {key: EVERYTHING[key] for key in [name, *needed]}
    assert server.post(CHAT, {**BODY, **extra}).status_code == 200
    assert server.post(CHAT, {**BODY, **dict.fromkeys(extra)}).status_code == 200  # null is the default


def test_roles_and_contents(server: Running) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "me"},
        {"role": "developer", "content": "d"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "7"},
        {"role": "assistant", "content": "x", "refusal": None, "reasoning_content": "y"},
        {"role": "system", "content": "s"},
    ]
    assert server.post(CHAT, {**BODY, "messages": messages}).status_code == 200


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "wizard", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"content": ""}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a", 5]}, "stop"),
        ({"logit_bias": {"a": 1}}, "logit_bias.a"),
        ({"logit_bias": {"1": 1000}}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 30}, "logprobs"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"function": {"name": "f", "parameters": []}}]}, "tools[0].function.parameters"),
        ({"tools": [templates.TOOL] * 2}, "tools"),
        ({"tools": [templates.TOOL], "tool_choice": "other"}, "tool_choice"),
        ({"tools": [templates.TOOL], "tool_choice": {"type": "function", "function": {"name": "no"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, "tool_choice"),
        ({"tools": [templates.TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"stream_options": 3}, "stream_options"),
    ],
)
def test_mistakes_in_a_chat_are_named(server: Running, extra: dict[str, Any], param: str) -> None:
    assert error_of(server.post(CHAT, {**BODY, **extra}))["param"] == param


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [99999]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": ["a"] * 2000}, "prompt"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "max_tokens": 0, "n": 2}, "n"),
        ({"prompt": "a", "echo": True, "logprobs": 30}, "logprobs"),
        ({"prompt": "a", "echo": True, "logprobs": 1, "suffix": "b"}, "suffix"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
    ],
)
def test_mistakes_in_a_completion_are_named(server: Running, extra: dict[str, Any], param: str) -> None:
    assert error_of(server.post(TEXT, {"model": MODEL, **extra}))["param"] == param


def test_a_long_prompt(server: Running) -> None:
    error = error_of(server.post(CHAT, {**BODY, "messages": [{"role": "user", "content": "x" * 1000}]}))
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    error = error_of(server.post(TEXT, {"prompt": "x" * 1000}))
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
    assert error_of(server.post(TEXT, {"prompt": "x" * 1000, "stream": True}))


def test_models_by_name(server: Running) -> None:
    assert server.post(CHAT, {**BODY, "model": "tiny"}).json()["model"] == "tiny"
    assert server.post(CHAT, {**BODY, "model": None}).json()["model"] == MODEL
    error = error_of(server.post(CHAT, {**BODY, "model": "gpt-4"}), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")


@pytest.mark.parametrize("content", [b"{", b"", b"[1]", b'"a"', b"\xff\xfe{}", b"null"])
def test_bodies_that_are_no_json_object(server: Running, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    assert error_of(server.post(CHAT, content=content, headers=headers))["type"] == "invalid_request_error"


def test_a_body_without_a_content_type(server: Running) -> None:
    assert server.post(CHAT, content=b'{"messages": [{"role": "user", "content": "a"}]}').status_code == 200


def test_unknown_places_and_methods(server: Running) -> None:
    assert error_of(server.get("/v1/nothing"), 404)["code"] == "not_found"
    assert error_of(server.get(CHAT), 405)["code"] == "method_not_allowed"


def test_keys() -> None:
    with serve(api_keys=["one", "two"]) as server:
        for headers in ({}, {"authorization": "Bearer three"}, {"authorization": "one"}):
            assert error_of(server.post(CHAT, BODY, headers=headers), 401)["code"] == "invalid_api_key"
        assert server.openai(api_key="two").chat.completions.create(**BODY).choices
        assert server.get("/health").status_code == 200
        assert error_of(server.get("/v1/models"), 401)


def test_cors() -> None:
    with serve(cors_origins=["https://a.example"], api_keys=["k"]) as server:
        response = server.get("/v1/models", headers={"origin": "https://a.example", "authorization": "Bearer k"})
        assert response.headers["access-control-allow-origin"] == "https://a.example"
        refused = server.get("/v1/models", headers={"origin": "https://a.example"})
        assert refused.status_code == 401 and "access-control-allow-origin" in refused.headers


def test_request_ids(server: Running) -> None:
    assert server.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = server.get("/health").headers["x-request-id"]
    assert made and made != server.get("/health").headers["x-request-id"]
    assert server.get("/health", headers={"x-request-id": "a b" * 99}).headers["x-request-id"] != "a b" * 99


def test_without_a_template_only_completions_are_served() -> None:
    with serve(template=None) as server:
        assert "--chat-template" in error_of(server.post(CHAT, BODY))["message"]
        assert server.post(TEXT, {"prompt": "a"}).status_code == 200


def test_what_the_template_refuses_is_said() -> None:
    with serve(template=templates.MISTRAL) as server:
        error = error_of(server.post(CHAT, {**BODY, "messages": BODY["messages"] * 2}))
        assert "roles must alternate" in error["message"]


def test_a_fault_of_our_own_is_a_500_that_gives_nothing_away(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve() as server:

        def broken(*_: object, **__: object) -> list[int]:
            raise ValueError("/secret/path")

        monkeypatch.setattr(server.tokenizer, "encode", broken)
        error = error_of(server.post(CHAT, BODY), 500)
        assert error["type"] == "server_error" and "secret" not in error["message"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize("path", [CHAT, TEXT])
@given(
    body=st.dictionaries(st.sampled_from([*EVERYTHING, "messages", "prompt", "echo", "best_of", "model"]), JSON),
    complete=st.booleans(),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_body_is_a_fault_of_ours(server: Running, path: str, body: dict[str, Any], complete: bool) -> None:
    if complete:
        body = {**body, "messages": BODY["messages"], "prompt": "a", "max_tokens": 1, "model": MODEL}
    response = server.post(path, content=json.dumps(body))
    if response.status_code != 200:
        error_of(response, response.status_code)
        assert response.status_code in (400, 404)


@pytest.mark.parametrize("text", ["\\ud800", "\\ud83d\\ude00", "\\u0000"])
def test_text_that_is_hardly_text(server: Running, text: str) -> None:
    part = f'{{"type": "text", "text": "{text}"}}'
    for content in (f'"{text}"', f"[{part}]", f'[{{"type": "{text}"}}]', f'{{"{text}": 1}}'):
        message = f'{{"role": "user", "content": {content}}}'
        response = server.post(CHAT, content=f'{{"max_tokens": 1, "messages": [{message}]}}')
        if response.status_code != 200:
            error_of(response)
    assert error_of(server.post(CHAT, content=f'{{"model": "{text}", "messages": []}}'), None)


def test_health_and_version(server: Running) -> None:
    assert server.get("/health").json() == {"status": "ok"}
    assert server.get("/version").json()["version"]


def test_as_many_tokens_as_there_is_room_for(server: Running) -> None:
    for path, body in ((CHAT, {"messages": BODY["messages"]}), (TEXT, {"prompt": "a"})):
        for value in (-1, -1.0, "-1"):
            answer = server.post(path, {**body, "max_tokens": value, "ignore_eos": True}).json()
            assert answer["usage"]["total_tokens"] == CONTEXT
        for value in (-2, 0 if path == CHAT else -3):
            assert error_of(server.post(path, {**body, "max_tokens": value}))["param"] == "max_tokens"
    error = server.post("/v1/messages", {"messages": BODY["messages"], "max_tokens": -1})
    assert error.status_code == 400 and "max_tokens" in error.text


def test_a_message_is_new_or_goes_on(server: Running) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    both = {"messages": messages, "add_generation_prompt": True, "continue_final_message": True}
    for path in (CHAT, "/tokenize"):
        assert error_of(server.post(path, {**both, "max_tokens": 2}))["param"] == "continue_final_message"
        for new in (False, None):
            assert server.post(path, {**both, "max_tokens": 2, "add_generation_prompt": new}).status_code == 200
        for going_on in (False, None):
            assert server.post(path, {**both, "max_tokens": 2, "continue_final_message": going_on}).status_code == 200


def test_any_model_name() -> None:
    with serve(any_model_name=True) as running:
        for name in ("gpt-4o", MODEL, "", "a/b c", None):
            for path, body in ((CHAT, BODY), (TEXT, {"prompt": "a", "max_tokens": 2}), ("/tokenize", {"prompt": "a"})):
                answer = running.post(path, {**body, "model": name})
                assert answer.status_code == 200
                assert answer.json().get("model", name or MODEL) == (name or MODEL)
        assert [card["id"] for card in running.get("/v1/models").json()["data"]] == [MODEL, "tiny"]
