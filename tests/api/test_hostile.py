"""Input that is meant to hurt: bounded in time and in memory, refused in words, and the server goes on."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from llmserve.api.edge.body import check_json
from llmserve.errors import RequestError

from .server import MODEL, Running, serve
from .test_requests import BODY, CHAT, TEXT, error_of

MIB = 2**20


def posts(server: Running) -> list[str]:
    """Every place that takes a body."""
    paths = server.get("/openapi.json").json()["paths"]
    return [path for path, methods in paths.items() if "post" in methods]


def resident() -> int:
    """Bytes of memory that this process, with the server in it, has now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def refused(path: str, response: httpx.Response, status: int) -> dict[str, Any]:
    """The error of a response, in the shape that the clients of this path read."""
    if not path.startswith("/v1/messages"):
        return error_of(response, status)
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"type", "error"} and body["error"].keys() == {"type", "message"}
    assert body["error"]["message"]
    error: dict[str, Any] = body["error"]
    return error


class Growth:
    """The most memory that was added while the block ran, looked at every few milliseconds."""

    def __enter__(self) -> Growth:
        self._before, self.most, self._over = resident(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.002):
            self.most = max(self.most, resident() - self._before)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.fixture(scope="module")
def small() -> Iterator[Running]:
    with serve(max_body_bytes="1MiB", body_seconds=1.0) as running:
        yield running


def raw(server: Running, head: str, parts: Iterator[bytes] | None = None) -> bytes:
    """What comes back for bytes that no client library would send. Ends when the server closes or has answered."""
    address = server.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=15) as connection:
        try:
            connection.sendall(head.replace("\n", "\r\n").encode("latin-1"))
            for part in parts or ():
                connection.sendall(part)
        except OSError:
            pass  # the server has had enough; what it said is still there to be read
        answer = b""
        while not re.search(rb"content-length: (\d+)\r\n.*\r\n\r\n", answer, re.S) or not answer.endswith(b"}"):
            piece = connection.recv(65536)
            if not piece:
                break
            answer += piece
        return answer


# --- size


def test_a_hundred_megabytes_that_are_announced(small: Running) -> None:
    chunk = b"x" * MIB
    head = f"POST {CHAT} HTTP/1.1\nhost: a\ncontent-type: application/json\ncontent-length: {100 * MIB}\n\n"
    with Growth() as growth:
        answer = raw(small, head, (chunk for _ in range(100)))
    assert b" 413 " in answer and b'"code":"request_too_large"' in answer
    assert growth.most < 32 * MIB


def test_a_hundred_megabytes_that_are_not_announced(small: Running) -> None:
    piece = b"%x\r\n%s\r\n" % (MIB, b"x" * MIB)
    with Growth() as growth:
        answer = raw(
            small, f"POST {CHAT} HTTP/1.1\nhost: a\ntransfer-encoding: chunked\n\n", (piece for _ in range(100))
        )
    assert b" 413 " in answer and b'"code":"request_too_large"' in answer
    assert growth.most < 32 * MIB


def test_who_asks_first_is_told_before_sending(small: Running) -> None:
    head = f"POST {CHAT} HTTP/1.1\nhost: a\nexpect: 100-continue\ncontent-length: {100 * MIB}\n\n"
    began = time.monotonic()
    assert b" 413 " in raw(small, head)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("length", ["9" * 40, "1" + "0" * 18])
def test_a_length_beyond_reason(small: Running, length: str) -> None:
    head = f"POST {CHAT} HTTP/1.1\nhost: a\nexpect: 100-continue\ncontent-length: {length}\n\n"
    assert raw(small, head)[9:12] in (b"413", b"400")  # the longer one is refused before we see it


def test_every_place_is_bounded(small: Running) -> None:
    for path in posts(small):
        assert "larger than" in refused(path, small.post(path, content=b" " * (MIB + 1)), 413)["message"]
        chunked = (b" " * MIB for _ in range(2))  # of no announced length
        assert "larger than" in refused(path, small.post(path, content=chunked), 413)["message"]


def test_many_large_bodies_at_once(small: Running) -> None:
    """Twenty clients announce less than the limit each and stop short of the end: more than sixteen are too many."""
    host, port = small.url.removeprefix("http://").split(":")
    head = f"POST {CHAT} HTTP/1.1\r\nhost: a\r\ncontent-length: {MIB}\r\n\r\n".encode()
    clients = [socket.create_connection((host, int(port)), timeout=15) for _ in range(20)]
    try:
        for client in clients:
            client.sendall(head + b" " * (MIB - 1))
        statuses = sorted(client.recv(65536).split()[1] for client in clients)
    finally:
        for client in clients:
            client.close()
    assert statuses.count(b"429") >= 4 and set(statuses) == {b"408", b"429"}
    assert small.post(CHAT, BODY).status_code == 200


def test_a_body_that_never_ends_runs_out_of_time(small: Running) -> None:
    head = f"POST {CHAT} HTTP/1.1\nhost: a\ncontent-length: 1000\n\n"
    began = time.monotonic()
    answer = raw(small, head + "{")
    assert b" 408 " in answer and b"within 1 seconds" in answer
    assert time.monotonic() - began < 5


# --- depth and numbers


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"messages": ' + b"[" * 100_000,
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"messages": [{"role": "user", "content": ' + b"[" * 200 + b"]" * 200 + b"}]}",
        b'{"a": "\\\\", "b": ' + b"[" * 200 + b'"x"' + b"]" * 200 + b"}",
    ],
)
def test_depth(server: Running, body: bytes) -> None:
    for path in posts(server):
        began = time.monotonic()
        assert "more than 128 deep" in refused(path, server.post(path, content=body), 400)["message"]
        assert time.monotonic() - began < 1


def test_brackets_in_strings_are_no_depth(server: Running) -> None:
    for text in ("[" * 1000, '\\"' + "[" * 1000, "\\\\", "\\\\\\" + '"' + "{" * 1000):
        check_json(f'{{"a": "{text}", "b": [1]}}'.encode(), max_depth=2)
    body = {**BODY, "messages": [{"role": "user", "content": "[{" * 150}]}
    assert server.post(CHAT, body).status_code == 200


def test_depth_is_found_in_large_bodies_in_time() -> None:
    for body in (b"[]," * MIB, b'"",' * MIB, b'"\\\\' * MIB, b"[" * (16 * MIB)):
        began = time.thread_time()
        with contextlib.suppress(RequestError):
            check_json(body, max_depth=128)
        assert time.thread_time() - began < 3


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("NaN", "NaN is no number"),
        ("-Infinity", "-Infinity is no number"),
        ("1e999", "too large: 1e999"),
        ("-1E+400", "too large: -1E+400"),
        ("9" * 10_000, "10000 digits"),
        ("9" * 400, "400 digits"),
        ("9" * 400 + ".0", "too large"),
    ],
)
@pytest.mark.parametrize("field", ["temperature", "max_tokens", "seed", "n", "top_k", "logit_bias", "metadata"])
def test_numbers(server: Running, field: str, value: str, words: str) -> None:
    nested = f'{{"5": {value}}}' if field in ("logit_bias", "metadata") else value
    for path, rest in ((CHAT, '"messages": [{"role": "user", "content": "a"}]'), (TEXT, '"prompt": "a"')):
        response = server.post(path, content=f'{{"{field}": {nested}, {rest}, "stop": ["1e999 NaN"]}}')
        assert words in error_of(response)["message"]


def test_numbers_in_words_are_only_words(server: Running) -> None:
    body = {**BODY, "messages": [{"role": "user", "content": "NaN Infinity 1e999 " + "9" * 400}]}
    assert server.post(CHAT, body).status_code == 200


@pytest.mark.parametrize("value", [2**63, 10**40, 10**299, -(10**40), 10**18 + 1])
@pytest.mark.parametrize(
    "field", ["seed", "max_tokens", "n", "top_k", "min_tokens", "temperature", "top_p", "presence_penalty", "logprobs"]
)
def test_large_numbers(server: Running, field: str, value: int) -> None:
    response = server.post(TEXT, {"prompt": "a", "max_tokens": 2, field: value})
    if response.status_code != 200:
        error_of(response)
    for key in ("logit_bias", "stop_token_ids", "prompt"):
        extra: dict[str, Any] = {key: {str(value): 1} if key == "logit_bias" else [value]}
        error_of(server.post(TEXT, {"prompt": "a", "max_tokens": 2, **extra}))


# --- text


@pytest.mark.parametrize("text", ["\\ud800", "\\udfff\\ud800", "\\u0000", "\\ud83d\\ude00", "\\uffff", "\\u202e"])
def test_halves_of_characters(server: Running, text: str) -> None:
    bodies = {
        CHAT: f'{{"messages": [{{"role": "user", "content": "{text}"}}], "max_tokens": 1, "stop": ["{text}"], '
        f'"user": "{text}", "metadata": {{"{text}": "{text}"}}}}',
        TEXT: f'{{"prompt": ["{text}"], "max_tokens": 1, "echo": true}}',
    }
    for path in posts(server):
        generic = f'{{"model": "{text}", "prompt": "{text}", "input": "{text}", "messages": "{text}", "{text}": 1}}'
        response = server.post(path, content=bodies.get(path, generic))
        if response.status_code != 200:
            refused(path, response, 404 if response.status_code == 404 else 400)
    assert error_of(server.post(CHAT, content=f'{{"model": "{text}", "messages": []}}'), None)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le", "utf-16-be"])
def test_other_encodings(server: Running, encoding: str) -> None:
    # Python's reader guesses them, and what is looked for as bytes would not be found in them.
    assert "UTF-8" in error_of(server.post(CHAT, content=json.dumps(BODY).encode(encoding)))["message"]


# --- HTTP


@pytest.mark.parametrize(
    "content_type", ["text/plain", "multipart/form-data; boundary=x", "application/xml", "a/b;;;", ""]
)
def test_content_types(server: Running, content_type: str) -> None:
    for path in posts(server):
        response = server.post(path, content=b"--x\r\n\r\nhello\r\n--x--", headers={"content-type": content_type})
        refused(path, response, 400)


def test_unknown_places_and_wrong_methods(server: Running) -> None:
    for path in ("/v1/nothing", "/v1/../etc/passwd", "/%00", "/v1/chat/completions/", "/" + "a" * 5000):
        error_of(server.get(path), 404)
    templates = server.get("/openapi.json").json()["paths"]
    for path in posts(server):
        for method in ("get", "put", "delete", "patch"):
            response = server.http.request(method, path)
            # A place may also be another one's example, as in /v1/responses/{response_id}.
            others = [
                t for t in templates if re.fullmatch(re.sub(r"{\w+}", "[^/]+", t), path) and method in templates[t]
            ]
            assert refused(path, response, 404 if others else 405)["message"]
            assert others or response.headers["allow"] == "POST"


def test_malformed_json_in_every_place(server: Running) -> None:
    for path in posts(server):
        for content in (b"{", b"", b"[1]", b'"a"', b"\xff\xfe{}", b"null", b'{"a": 1,}', b"{'a': 1}", b"\x80"):
            assert refused(path, server.post(path, content=content), 400)["message"], content


# --- templates


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(l=[]) %}{% for i in range(64) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
        "{{ 'x' * 10**12 }}",
        "{{ messages.__class__.__mro__.x }}",
    ],
)
def test_templates(source: str) -> None:
    guarded = "{% if messages[0].content == 'go' %}" + source + "{% else %}ok{% endif %}"
    with serve(template=guarded) as server, Growth() as growth:
        began = time.monotonic()
        body = {**BODY, "messages": [{"role": "user", "content": "go"}]}
        error_of(server.post(CHAT, body))
        assert time.monotonic() - began < 15
        assert server.post(CHAT, BODY).status_code == 200
    assert growth.most < 400 * MIB


def test_what_a_client_sends_is_not_a_template(server: Running) -> None:
    text = server.post("/tokenize", {"prompt": "{{ 7 * 7 }}"}).json()
    body = {**BODY, "messages": [{"role": "user", "content": "{{ 7 * 7 }}"}]}
    assert server.post(CHAT, body).status_code == 200
    ids = server.tokenizer.encode(server.template.render(body["messages"]), False)
    assert "{{ 7 * 7 }}" in server.tokenizer.decode(ids) and text["count"] > 3


# --- grammars


def doubled(depth: int) -> dict[str, Any]:
    """A schema that is small to write, and 2^depth large when every reference is followed."""
    named: dict[str, Any] = {
        f"d{i}": {"type": "object", "properties": {k: {"$ref": f"#/$defs/d{i + 1}"} for k in "ab"}}
        for i in range(depth)
    }
    return {"$defs": {**named, f"d{depth}": {"type": "string"}}, "$ref": "#/$defs/d0"}


LOOP = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
TREE = {
    "$defs": {"t": {"type": "object", "properties": {"l": {"$ref": "#/$defs/t"}, "r": {"$ref": "#/$defs/t"}}}},
    "$ref": "#/$defs/t",
}
GRAMMARS: dict[str, dict[str, Any]] = {
    "regex-nested-counts": {"guided_regex": "(((a{1,99}){1,99}){1,99}){1,99}"},
    "regex-large-count": {"guided_regex": "a{1000000000}"},
    "regex-alternatives": {"guided_regex": "(a|a)*" * 500},
    "regex-subsets": {"guided_regex": "(.*a.{20}|.*b.{20}|.*c.{20})"},
    "regex-intersecting": {"guided_regex": "(x+x+)+y" * 50},
    "regex-deep": {"guided_regex": "(" * 20_000 + "a" + ")" * 20_000},
    "regex-long": {"guided_regex": "[a-z]" * 100_000},
    "regex-unclosed": {"guided_regex": "(" * 20_000},
    "schema-loop": {"guided_json": LOOP},
    "schema-tree": {"guided_json": TREE},
    "schema-self": {"guided_json": {"$ref": "#"}},
    "schema-doubled": {"guided_json": doubled(40)},
    "schema-all-of": {"guided_json": {"allOf": [{"anyOf": [{"const": i}, {"const": -i}]} for i in range(1, 40)]}},
    "schema-counts": {"guided_json": {"type": "array", "items": {"type": "string"}, "minItems": 10**9}},
    "schema-lengths": {"guided_json": {"type": "string", "minLength": 10**6, "maxLength": 10**9}},
    "schema-enum": {"guided_json": {"enum": [f"word {i}" for i in range(50_000)]}},
    "schema-wide": {
        "guided_json": {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(20_000)}}
    },
    "schema-pattern": {"guided_json": {"type": "string", "pattern": "((a{1,99}){1,99}){1,99}"}},
    "schema-multiples": {"guided_json": {"allOf": [{"type": "integer", "multipleOf": p} for p in (97, 89, 83, 79)]}},
    "ebnf-endless": {"guided_grammar": "root ::= root"},
    "ebnf-left": {"guided_grammar": 'root ::= root root | "a"'},
    "ebnf-empty": {"guided_grammar": "root ::= root root | "},
    "ebnf-many": {"guided_grammar": "root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(5000))},
    "ebnf-deep": {"guided_grammar": "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000},
    "choice-many": {"guided_choice": [f"choice {i}" for i in range(50_000)]},
    "choice-long": {"guided_choice": ["a" * 500_000]},
}


@pytest.mark.parametrize("name", GRAMMARS)
def test_grammars(server: Running, name: str) -> None:
    """Answered or refused, within seconds; and the others notice nothing of it."""
    slowest, over = 0.0, threading.Event()

    def watch() -> None:
        nonlocal slowest
        while not over.wait(0.05):
            began = time.monotonic()
            assert server.http.get("/health").status_code == 200
            slowest = max(slowest, time.monotonic() - began)

    thread = threading.Thread(target=watch)
    thread.start()
    began = time.monotonic()
    try:
        with Growth() as growth:
            response = server.post(CHAT, {**BODY, **GRAMMARS[name], "max_tokens": 40})
    finally:
        over.set()
        thread.join()
    if response.status_code != 200:
        error_of(response)
    assert time.monotonic() - began < 20 and slowest < 5
    assert growth.most < 300 * MIB


# --- limits of one request


def test_limits_of_a_request() -> None:
    limits: dict[str, Any] = {"max_output_tokens": 16, "max_n": 2, "max_prompts": 2, "max_stop_strings": 1}
    with serve(**limits, max_stop_chars=4) as server:
        for body, param in (
            ({"prompt": "a", "max_tokens": 17}, "max_tokens"),
            ({"prompt": "a", "n": 3}, "n"),
            ({"prompt": ["a", "b", "c"]}, "prompt"),
            ({"prompt": "a", "stop": ["a", "b"]}, "stop"),
            ({"prompt": "a", "stop": "abcde"}, "stop"),
        ):
            for stream in (False, True):
                error = error_of(server.post(TEXT, {"max_tokens": 5, "stream": stream, **body}))
                assert error["param"] == param and "This server allows at most" in error["message"]
        assert server.post(TEXT, {"prompt": "a"}).status_code == 200
        answer = server.post(CHAT, {"messages": BODY["messages"], "ignore_eos": True}).json()
        assert answer["choices"][0]["finish_reason"] == "length" and answer["usage"]["completion_tokens"] == 16


def test_the_model_is_still_there_after_all_of_it(server: Running, small: Running) -> None:
    for running in (server, small):
        running.wait_until_idle()
        assert running.post(CHAT, BODY).json()["model"] == MODEL
