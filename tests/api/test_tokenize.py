"""/tokenize, /detokenize, /load, and what /v1/models says of the context."""

from __future__ import annotations

from typing import Any

import pytest

from llmserve import __version__

from ..text import templates
from .server import CONTEXT, MODEL, Executor, Running, serve
from .test_requests import error_of

CHAT = [{"role": "user", "content": "Hi"}]


def test_a_prompt_and_back(server: Running) -> None:
    text = "hello wörld <|im_end|>"
    answer = server.post("/tokenize", {"model": MODEL, "prompt": text, "return_token_strs": True}).json()
    ids = server.tokenizer.encode(text)
    assert answer["tokens"] == ids and answer["count"] == len(ids) and answer["max_model_len"] == CONTEXT
    assert answer["token_strs"][0] == "hello" and len(answer["token_strs"]) == len(ids)
    assert server.post("/detokenize", {"model": MODEL, "tokens": ids}).json() == {"prompt": text}


def test_strings_only_where_they_are_asked_for(server: Running) -> None:
    assert server.post("/tokenize", {"prompt": "a"}).json()["token_strs"] is None
    assert server.post("/tokenize", {"prompt": ""}).json()["tokens"] == []


@pytest.mark.parametrize("fields", [{}, {"tools": [templates.TOOL]}, {"add_generation_prompt": False}])
def test_a_chat_is_tokenized_as_it_is_answered(server: Running, fields: dict[str, Any]) -> None:
    counted = server.post("/tokenize", {"messages": CHAT, **fields}).json()
    body = {"messages": CHAT, "max_tokens": 1, **fields, "tool_choice": "none"}
    assert counted["count"] == server.post("/v1/chat/completions", body).json()["usage"]["prompt_tokens"]


def test_special_tokens_of_the_tokenizer_can_be_left_out(tmp_path: Any) -> None:
    with serve() as server:
        server.tokenizer._add_bos = True
        with_bos = server.post("/tokenize", {"prompt": "a"}).json()["tokens"]
        without = server.post("/tokenize", {"prompt": "a", "add_special_tokens": False}).json()["tokens"]
        assert with_bos == [server.tokenizer.bos_token_id, *without]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"messages": []}),
        ("/tokenize", {"prompt": "a", "messages": CHAT}),
        ("/tokenize", {"prompt": ["a"]}),
        ("/detokenize", {}),
        ("/detokenize", {"tokens": [10**6]}),
        ("/detokenize", {"tokens": [-1]}),
    ],
)
def test_refusals(server: Running, path: str, body: dict[str, Any]) -> None:
    error_of(server.post(path, body))
    assert server.post(path, {"model": "other", "prompt": "a", "tokens": [1]}).status_code == 404


def test_the_model_card_has_the_context_length(server: Running) -> None:
    for name in (MODEL, "tiny"):
        card = server.get(f"/v1/models/{name}").json()
        assert card["id"] == name and card["max_model_len"] == card["context_length"] == CONTEXT
    error_of(server.get("/v1/models/other"), 404)


def test_version(server: Running) -> None:
    assert server.get("/version").json() == {"version": __version__}


def test_load_shows_what_runs_and_waits() -> None:
    with serve(executor=Executor(step_seconds=0.02), limits={"max_num_seqs": 1}) as server:
        idle = {"server_load": 0, "running": 0, "waiting": 0, "kv_cache_usage": 0}
        assert server.get("/load").json() == idle
        streams = [
            server.openai().chat.completions.create(
                model=MODEL,
                messages=CHAT,  # type: ignore[arg-type]
                stream=True,
                max_tokens=400,
                extra_body={"ignore_eos": True},
                timeout=5,
            )
            for _ in range(1)
        ]
        next(iter(streams[0]))
        busy = server.get("/load").json()
        assert busy["running"] == 1 and busy["server_load"] == 1 and 0 < busy["kv_cache_usage"] <= 1
        streams[0].close()
        server.wait_until_idle()
        assert server.get("/load").json() == idle
