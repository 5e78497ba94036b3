"""Structured output over HTTP: every way of asking is enforced, or refused with a 400 that says why."""

from __future__ import annotations

import json
import re
import time
from typing import Any, Literal

import jsonschema
import pytest
from pydantic import BaseModel

from llmserve.engine import Grammar, async_engine
from llmserve.engine.grammar import compiler
from llmserve.engine.grammar.compiler import GrammarCompiler
from tests.api.server import MODEL, Running

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["hello", "héllo"]}, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
STRICT = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
OBJECT = r'(?s)\{\s*"name"\s*:.*\}'
GRAMMAR = 'root ::= "hello" " "? [0-9]'


class Person(BaseModel):
    age: int
    mood: Literal["well", "unwell"]


ASKED: list[tuple[dict[str, Any], str]] = [
    ({"response_format": STRICT}, OBJECT),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": SCHEMA}}}, OBJECT),
    ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, OBJECT),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, OBJECT),
    ({"response_format": {"type": "regex", "pattern": "[ab]{3}"}}, "[ab]{3}"),
    ({"response_format": {"type": "grammar", "grammar": GRAMMAR}}, "hello ?[0-9]"),
    ({"guided_json": SCHEMA}, OBJECT),
    ({"guided_json": json.dumps(SCHEMA)}, OBJECT),
    ({"guided_regex": r"\+49 [0-9]{5}"}, r"\+49 [0-9]{5}"),
    ({"guided_choice": ["yes", "no"]}, "yes|no"),
    ({"guided_grammar": GRAMMAR}, "hello ?[0-9]"),
    ({"structured_outputs": {"json": SCHEMA}}, OBJECT),
    ({"structured_outputs": {"regex": "x{2,4}", "disable_fallback": True}}, "x{2,4}"),
    ({"structured_outputs": {"choice": ["left", "right"]}}, "left|right"),
    ({"structured_outputs": {"grammar": GRAMMAR}}, "hello ?[0-9]"),
    ({"grammar": GRAMMAR}, "hello ?[0-9]"),
    ({"json_schema": SCHEMA}, OBJECT),
    ({"regex": "z+y", "response_format": {"type": "text"}}, "z+y"),
    ({"ebnf": GRAMMAR}, "hello ?[0-9]"),
]


def body(path: str, **extra: Any) -> dict[str, Any]:
    prompt = {"messages": [{"role": "user", "content": "Hi"}]} if path == CHAT else {"prompt": "Hi"}
    return {"model": MODEL, "max_tokens": 300, **prompt, **extra}


def text_of(choice: dict[str, Any]) -> str:
    text: str = choice["message"]["content"] if "message" in choice else choice["text"]
    return text


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(("extra", "pattern"), ASKED)
def test_every_way_of_asking_is_enforced(server: Running, path: str, extra: dict[str, Any], pattern: str) -> None:
    for seed in range(3):
        answer = server.post(path, body(path, seed=seed, n=2, **extra)).json()
        for choice in answer["choices"]:
            assert choice["finish_reason"] == "stop", answer
            assert re.fullmatch(pattern, text_of(choice))
            if pattern == OBJECT:
                jsonschema.validate(json.loads(text_of(choice)), SCHEMA)
    server.wait_until_idle()


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_streamed_with_logprobs_or_seeds_it_is_the_same_text(server: Running, path: str) -> None:
    wanted = body(path, seed=7, response_format=STRICT)
    whole = server.post(path, wanted).json()
    text, used = text_of(whole["choices"][0]), whole["usage"]["completion_tokens"]
    scored = server.post(path, {**wanted, "logprobs": True if path == CHAT else 1}).json()
    assert text_of(scored["choices"][0]) == text, "forced tokens must not depend on whether they are sampled"
    assert scored["usage"]["completion_tokens"] == used
    logprobs = scored["choices"][0]["logprobs"]
    assert len(logprobs["content"] if path == CHAT else logprobs["tokens"]) == used, "every token has its own"
    assert text_of(server.post(path, wanted).json()["choices"][0]) == text
    for logprob in (None, True if path == CHAT else 1):
        pieces = []
        with server.http.stream("POST", path, json={**wanted, "stream": True, "logprobs": logprob}) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    pieces += json.loads(line[6:])["choices"]
        streamed = "".join(p["delta"].get("content") or "" if path == CHAT else p["text"] for p in pieces)
        assert streamed == text
        assert [p["finish_reason"] for p in pieces if p["finish_reason"]] == ["stop"]


def test_an_answer_that_is_cut_off_says_so(server: Running) -> None:
    answer = server.post(CHAT, body(CHAT, max_tokens=4, response_format=STRICT)).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 4


def test_the_parsed_answer_of_the_client(server: Running) -> None:
    client = server.openai()
    answer = client.beta.chat.completions.parse(
        model=MODEL, messages=[{"role": "user", "content": "Who?"}], response_format=Person, max_tokens=300
    )
    parsed = answer.choices[0].message.parsed
    assert parsed is not None
    assert parsed.mood in ("well", "unwell")


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("extra", "param", "word"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type", "'xml'"),
        ({"response_format": {"type": "structural_tag"}}, "response_format.type", "structural_tag"),
        ({"response_format": {"type": "json_schema"}}, "response_format.schema", "required"),
        ({"response_format": {**STRICT, "json_schema": {"schema": 5}}}, "response_format.json_schema.schema", "object"),
        ({"response_format": {"type": "json_schema", "json_schema": []}}, "response_format.json_schema", "object"),
        ({"guided_json": {"not": {}}}, "guided_json", '"not"'),
        ({"guided_json": {"if": {}, "then": {}}}, "guided_json", '"if", "then"'),
        ({"guided_json": {"uniqueItems": True}}, "guided_json", "uniqueItems"),
        ({"guided_json": {"properties": {"a": {"pattern": "(?=b)"}}}}, "guided_json", "pattern"),
        ({"guided_grammar": ""}, "guided_grammar", "empty"),
        ({"guided_grammar": " \n"}, "guided_grammar", "empty"),
        ({"structured_outputs": {"grammar": ""}}, "structured_outputs.grammar", "empty"),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex", "empty"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "list"),
        ({"guided_regex": ""}, "guided_regex", "empty"),
        ({"regex": ""}, "regex", "empty"),
        ({"ebnf": ""}, "ebnf", "empty"),
        ({"response_format": {"type": "grammar", "grammar": ""}}, "response_format.grammar", "empty"),
        ({"response_format": {"type": "regex", "pattern": ""}}, "response_format.pattern", "empty"),
        ({"guided_json": "{"}, "guided_json", "JSON"),
        ({"guided_json": "[" * 100_000}, "guided_json", "JSON"),
        ({"guided_regex": "(?<=a)b"}, "guided_regex", "look"),
        ({"guided_regex": 5}, "guided_regex", "string"),
        ({"guided_choice": []}, "guided_choice", "list"),
        ({"guided_choice": ["a", 5]}, "guided_choice", "list"),
        ({"guided_grammar": "root ::= ("}, "guided_grammar", "Expected"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag", "not supported"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs", "one of"),
        ({"structured_outputs": "json"}, "structured_outputs", "object"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "one of them"),
        ({"guided_json": {}, "guided_whitespace_pattern": " *"}, "guided_whitespace_pattern", "not supported"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_enforced_is_refused_before_a_word_is_said(
    server: Running, path: str, stream: bool, extra: dict[str, Any], param: str, word: str
) -> None:
    response = server.post(path, body(path, stream=stream, **extra))
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert word in error["message"]


@pytest.mark.parametrize(
    "extra",
    [{"response_format": None}, {"response_format": {"type": "text"}}, {"grammar": ""}, {"structured_outputs": {}}],
)
def test_asking_for_nothing_is_free_text(server: Running, extra: dict[str, Any]) -> None:
    plain = server.post(CHAT, body(CHAT, max_tokens=8, seed=1)).json()
    assert server.post(CHAT, body(CHAT, max_tokens=8, seed=1, **extra)).json()["choices"] == plain["choices"]


def test_minimum_and_ignored_ends_do_not_break_the_grammar(server: Running) -> None:
    for extra in ({"min_tokens": 50}, {"ignore_eos": True}):
        choice = server.post(CHAT, body(CHAT, guided_choice=["yes", "no"], **extra)).json()["choices"][0]
        assert (text_of(choice) in ("yes", "no"), choice["finish_reason"]) == (True, "stop")


def _named(name: str) -> dict[str, Any]:
    return {"type": "object", "properties": {name: {"type": "null"}}, "required": [name], "additionalProperties": False}


SLOW: list[tuple[str, dict[str, Any]]] = [
    (COMPLETIONS, {"guided_regex": "slow [0-3]"}),
    (COMPLETIONS, {"guided_choice": ["slow", "slower"], "stream": True}),
    (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": _named("slow_a")}}}),
    (CHAT, {"structured_outputs": {"grammar": 'root ::= "slow" [0-4]'}, "stream": True}),
    (
        CHAT,
        {
            "tools": [{"type": "function", "function": {"name": "f", "parameters": _named("slow_b")}}],
            "tool_choice": "required",
        },
    ),
    ("/v1/responses", {"input": "Hi", "text": {"format": {"type": "json_schema", "schema": _named("slow_c")}}}),
    ("/v1/messages", {"output_config": {"format": {"type": "json_schema", "schema": _named("slow_d")}}}),
]


@pytest.mark.parametrize(("path", "extra"), SLOW)
def test_a_grammar_that_is_not_compiled_in_time_is_no_mistake_of_the_client(
    server: Running, monkeypatch: pytest.MonkeyPatch, path: str, extra: dict[str, Any]
) -> None:
    compile_now = GrammarCompiler._compile

    def slowly(self: GrammarCompiler, grammar: Grammar) -> Any:
        time.sleep(0.3)
        return compile_now(self, grammar)

    monkeypatch.setattr(GrammarCompiler, "_compile", slowly)
    monkeypatch.setattr(async_engine, "COMPILE_SECONDS", 0.05)
    asked = extra if "input" in extra else body(CHAT if path == "/v1/messages" else path, **extra)
    refused = server.post(path, asked)
    assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
    error = refused.json()["error"]
    assert "try again" in error["message"]
    assert error["type"] == ("overloaded_error" if path == "/v1/messages" else "service_unavailable")
    monkeypatch.setattr(async_engine, "COMPILE_SECONDS", 10.0)
    began = time.monotonic()
    assert server.post(path, asked).status_code == 200  # it was compiled on
    assert time.monotonic() - began < 5
    assert server.get("/health").status_code == 200


@pytest.mark.parametrize("place", ["compile", "source"])
def test_a_panic_of_the_grammar_library_is_an_error_of_the_request(
    server: Running, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    class Panic(BaseException):
        pass

    def panic(*_: object, **__: object) -> None:
        raise Panic("index out of bounds")

    monkeypatch.setattr(compiler, "_Compiled" if place == "compile" else "_source", panic)
    refused = server.post(COMPLETIONS, body(COMPLETIONS, guided_regex=f"panic {place}"))
    assert refused.status_code == 400 and "index out of bounds" in refused.json()["error"]["message"]
