"""Bodies and texts that are far too long: told apart before they cost anything, and nobody waits for them."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from typing import Any

import httpx
import pytest

from llmserve.api.edge.body import check_json
from llmserve.errors import RequestError

from .server import Running, serve
from .test_hostile import MIB, Growth, posts, refused
from .test_requests import CHAT, TEXT, error_of

ITEMS = 400_000


@pytest.mark.parametrize(
    ("path", "head", "item"),
    [
        (TEXT, '{"max_tokens": 1, "prompt": [', "1"),
        (TEXT, '{"max_tokens": 1, "prompt": [', "null"),
        (TEXT, '{"max_tokens": 1, "prompt": [', "1.5"),
        (TEXT, '{"max_tokens": 1, "prompt": [', '""'),
        (TEXT, '{"max_tokens": 1, "prompt": ["a"], "stop": [', "1"),
        (TEXT, '{"max_tokens": 1, "prompt": ["a"], "stop_token_ids": [', '"x"'),
        (CHAT, '{"max_tokens": 1, "messages": [', "1"),
        (CHAT, '{"messages": [{"role": "user", "content": "a"}], "tools": [', "1"),
        ("/v1/messages", '{"max_tokens": 1, "messages": [', "1"),
        ("/v1/responses", '{"input": [', "1"),
        ("/v1/embeddings", '{"input": [', "null"),
        ("/detokenize", '{"tokens": [', '"x"'),
        ("/tokenize", '{"messages": [', "[]"),
    ],
)
def test_long_lists_of_the_wrong_thing(server: Running, path: str, head: str, item: str) -> None:
    """Once a list's first mistake is found, no other is looked for: a million of them took over ten gigabytes."""
    body = (head + f"{item}," * ITEMS + item + "]}").encode()
    began = time.process_time()
    with Growth() as growth:
        refused(path, server.post(path, content=body), 400)
    assert time.process_time() - began < 3 and growth.most < 300 * MIB


def test_values_are_counted() -> None:
    many = {item: b'{"a": [' + item * 600_000 + b"1]}" for item in (b"1,", b"[],", b'"",', b'{"a":[1]},')}
    with serve(max_json_values=1000) as small:
        for path in posts(small):
            body = b'{"a": [' + b"1," * 1000 + b"1]}"
            assert "more than 1000 values" in refused(path, small.post(path, content=body), 400)["message"]
    for body in many.values():
        with pytest.raises(RequestError, match="more than 524288 values"):
            check_json(body, max_depth=128)
    check_json(b'{"a": "' + b"[,{" * 10**6 + b'"}', max_depth=2, max_values=10)  # in a string they are none
    with pytest.raises(RequestError, match="more than 3 values"):
        check_json(b'{"a": [1, 2, 3], "b": "]]]"}', max_depth=2, max_values=3)


# --- prompts that are far too long


LONG = 10**7
PROMPTS: dict[str, dict[str, Any]] = {
    TEXT: {"prompt": "TEXT", "max_tokens": 1},
    f"{TEXT} lists": {"prompt": ["a", "TEXT"], "max_tokens": 1},
    f"{TEXT} suffix": {"prompt": "a", "suffix": "TEXT", "max_tokens": 1},
    CHAT: {"messages": [{"role": "user", "content": "TEXT"}], "max_tokens": 1},
    f"{CHAT} parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "TEXT"}]}]},
    "/v1/messages": {"messages": [{"role": "user", "content": "TEXT"}], "max_tokens": 1},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "TEXT"}]},
    "/v1/responses": {"input": "TEXT", "max_output_tokens": 1},
    "/v1/responses auto": {"input": "TEXT", "max_output_tokens": 1, "truncation": "auto"},
    "/v1/responses/input_tokens": {"input": "TEXT"},
    "/v1/embeddings": {"input": ["TEXT", "a"]},
    "/tokenize": {"prompt": "TEXT"},
    "/tokenize chat": {"messages": [{"role": "user", "content": "TEXT"}]},
}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_text_of_ten_megabytes_is_not_tokenized(server: Running, name: str) -> None:
    path = name.split()[0]
    for text in ("a", " ", "1 ", "\\n", "\u65e5"):
        body = json.dumps(PROMPTS[name]).replace("TEXT", text * (LONG // len(text.encode())))
        began = time.process_time()
        with Growth() as growth:
            error = refused(path, server.post(path, content=body), 400)
        if "messages" not in path or path == CHAT:
            assert error["code"] == "context_length_exceeded" and error["param"] in PROMPTS[name]
        assert "maximum context length is 512 tokens" in error["message"]
        assert time.process_time() - began < 2 and growth.most < 400 * MIB


def test_others_do_not_wait_for_long_texts(server: Running) -> None:
    body = json.dumps({"prompt": "a" * LONG, "max_tokens": 1})
    large = [threading.Thread(target=lambda: server.post(TEXT, content=body)) for _ in range(4)]
    for thread in large:
        thread.start()
    began = time.monotonic()
    assert server.post("/tokenize", {"prompt": "a"}).json()["count"] == 1
    assert time.monotonic() - began < 3
    for thread in large:
        thread.join()


def test_who_has_left_is_not_tokenized_for(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    done = 0

    def encode(text: str, add_special_tokens: bool = True) -> list[int]:
        nonlocal done
        done += 1
        time.sleep(0.05)
        return [1]

    monkeypatch.setattr(server.tokenizer, "encode", encode)
    with contextlib.suppress(httpx.TimeoutException):
        server.post(TEXT, {"prompt": ["a" * 8000] * 200, "max_tokens": 1}, timeout=0.5)
    time.sleep(0.3)
    before = done
    time.sleep(0.3)
    assert 0 < done == before < 50


class Panic(BaseException):
    """As extensions in Rust raise them: no `Exception`."""


@pytest.mark.parametrize("path", [TEXT, CHAT, "/v1/messages", "/v1/embeddings", "/tokenize", "/v1/responses"])
def test_a_panic_is_an_error_in_the_clients_shape(server: Running, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    def panic(*_: object, **__: object) -> None:
        raise Panic("capacity overflow")

    monkeypatch.setattr(server.tokenizer, "encode", panic)
    assert "its log says more" in refused(path, server.post(path, PROMPTS[path]), 500)["message"]


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_panic_in_a_stream_ends_it_in_words(server: Running, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    def panic(*_: object) -> None:
        raise Panic("capacity overflow")

    monkeypatch.setattr(server.tokenizer, "token_bytes", panic)
    body = {**PROMPTS[path], "max_tokens": 3, "stream": True, "logprobs": 1 if path == TEXT else True}
    answer = server.post(path, body)
    assert answer.status_code in (200, 500) and '"error"' in answer.text and "Internal" not in answer.text
    monkeypatch.undo()
    server.wait_until_idle()


def test_ids_to_be_spelt_are_bounded(server: Running) -> None:
    assert error_of(server.post("/detokenize", {"tokens": [1] * 70_000}))["param"] == "tokens"
    assert server.post("/detokenize", {"tokens": [72] * 60_000}).status_code == 200
