"""Nobody can end the engine; and if it has ended after all, so does the process, once everybody has been told."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx
import pytest

from llmserve.engine import EngineCore
from llmserve.text.tokenizer import TokenStream

from .process import process
from .server import Executor, Running, serve
from .test_hostile import posts, refused
from .test_requests import BODY, CHAT, TEXT, error_of

# Where each endpoint takes its numbers, and a body that is right without them.
NUMBERS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    CHAT: (
        {"messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 2},
        (
            *("temperature", "top_p", "top_k", "min_p", "n", "seed", "presence_penalty", "frequency_penalty"),
            *("repetition_penalty", "min_tokens", "max_tokens", "top_logprobs"),
        ),
    ),
    TEXT: (
        {"prompt": "a", "max_tokens": 2},
        (
            *("temperature", "top_p", "top_k", "min_p", "n", "best_of", "seed", "presence_penalty"),
            *("frequency_penalty", "repetition_penalty", "min_tokens", "logprobs"),
        ),
    ),
    "/v1/messages": (
        {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
        ("temperature", "top_p", "top_k", "max_tokens"),
    ),
    "/v1/responses": (
        {"input": "a", "max_output_tokens": 2},
        (
            *("temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty", "min_tokens"),
            *("top_logprobs", "max_output_tokens"),
        ),
    ),
    "/v1/embeddings": ({"input": "a"}, ("dimensions",)),
}
VALUES = (
    *(
        "2147483648",
        "-2147483649",
        "4294967296",
        "9223372036854775808",
        "18446744073709551616",
        "1e30",
        "-1e30",
        "1e308",
    ),
    *("1e-308", "5e-324", "-5e-324", "1e-40", "-0.0", "0", "-1", "-2", "1.5", "5.0", "true", '"nan"', '"-inf"', '"5"'),
    *("NaN", "-Infinity", "1e400", "9" * 299, "[1]", "{}", '""'),
)


@pytest.mark.parametrize("path", NUMBERS)
def test_numbers_in_every_endpoint(server: Running, path: str) -> None:
    body, fields = NUMBERS[path]
    for field in fields:
        for value in VALUES:
            sent = {**body, field: 0, "stream": False, "stop": ["a"]}
            text = json.dumps(sent).replace(f'"{field}": 0', f'"{field}": {value}')
            response = server.post(path, content=text)
            if response.status_code != 200:
                refused(path, response, 400)
    server.wait_until_idle()


@pytest.mark.parametrize("penalty", ["1e-308", "5e-324", "1e-40", "1e-39", "0", "-0.0", "1e5", "1e38", '"inf"'])
def test_penalties_that_float32_cannot_hold(server: Running, penalty: str) -> None:
    for path in (CHAT, TEXT, "/v1/responses"):
        text = json.dumps(NUMBERS[path][0])[:-1] + f', "repetition_penalty": {penalty}}}'
        assert error_of(server.post(path, content=text))["param"] == "repetition_penalty"


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"prompt": [-1], "echo": True}, "prompt"),
        ({"prompt": [2**31], "echo": True}, "prompt"),
        ({"prompt": [2**70], "echo": True}, "prompt"),
        ({"prompt": [[1], [267]], "echo": True, "logprobs": 1}, "prompt"),
        ({"prompt": [1] * 100_000, "echo": True}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]], "echo": True}, "prompt"),
        ({"logit_bias": {str(i): 1 for i in range(20_000)}}, "logit_bias"),
        ({"logit_bias": {"267": 1}}, "logit_bias"),
        ({"logit_bias": {str(2**40): 1}}, "logit_bias"),
        ({"logit_bias": {"1": "nan"}}, "logit_bias"),
        ({"stop_token_ids": [1] * 2000}, "stop_token_ids"),
        ({"stop_token_ids": [2**31]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": "a" * 2000}, "stop"),
        ({"prompt": ["a"] * 100, "n": 128}, "n"),
        ({"n": 2**31}, "n"),
        ({"best_of": 2**31}, "best_of"),
        ({"logprobs": 2**31}, "logprobs"),
        ({"seed": 1.5}, "seed"),
    ],
)
def test_lists_and_ids(server: Running, extra: dict[str, Any], param: str) -> None:
    assert error_of(server.post(TEXT, {"prompt": "a", "max_tokens": 2, **extra}))["param"] == param


@pytest.mark.parametrize("tokens", [[-1], [10**4], [2**31], [2**63], [2**200]])
def test_ids_to_be_spelt(server: Running, tokens: list[int]) -> None:
    assert error_of(server.post("/detokenize", {"tokens": tokens}))["param"] == "tokens"


# --- one request's fault


class _Breaking(TokenStream):
    """Spells until it meets a token that it cannot bear."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def step(self, token_id: int) -> str:
        raise self._error

    def flush(self) -> str:
        return ""


class Panic(BaseException):
    """As extensions in Rust raise them."""


@pytest.mark.parametrize("error", [OverflowError("too far"), Panic("no"), UnicodeError("odd"), MemoryError("full")])
@pytest.mark.parametrize("place", ["spell", "add"])
def test_a_fault_in_one_request_is_that_requests(
    monkeypatch: pytest.MonkeyPatch, place: str, error: BaseException
) -> None:
    with serve() as running:
        real = EngineCore._detokenizer

        def text(core: EngineCore, params: Any) -> Any:
            if params.seed != 666:
                return real(core, params)
            if place == "add":
                raise error
            made = real(core, params)
            assert made is not None
            made._stream = _Breaking(error)
            return made

        monkeypatch.setattr(EngineCore, "_detokenizer", text)
        others: list[int] = []
        go_on = threading.Thread(
            target=lambda: others.append(running.post(TEXT, {"prompt": "a", "max_tokens": 200}).status_code)
        )
        go_on.start()
        for stream in (False, True):
            response = running.post(CHAT, {**BODY, "seed": 666, "stream": stream})
            assert type(error).__name__ in response.text
            if not stream:
                assert response.status_code in (500, 503) and response.json()["error"]["message"]
        go_on.join()
        assert others == [200] and running.get("/health").status_code == 200
        running.wait_until_idle()


# --- an engine that has died after all


@pytest.mark.parametrize("stream", [False, True])
def test_a_process_whose_engine_has_died_ends_and_says_so(stream: bool) -> None:
    with process(executor={"die_after": 20, "step_seconds": 0.02}) as server:
        answers: list[httpx.Response] = []

        def ask() -> None:
            body = {"prompt": "a", "max_tokens": 200, "stream": stream, "ignore_eos": True}
            answers.append(httpx.post(server.url + TEXT, json=body, timeout=20))

        clients = [threading.Thread(target=ask) for _ in range(4)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        code, said = server.end()
    assert len(answers) == 4  # nobody's connection was cut
    for answer in answers:
        assert "fell off the bus" in answer.text
        assert answer.text.endswith("data: [DONE]\n\n") if stream else answer.status_code == 503
    assert code == 1 and "fell off the bus" in said


def test_every_place_still_answers_after_all_of_it(server: Running) -> None:
    for path in posts(server):
        assert server.post(path, {}).status_code in (200, 400)
    assert server.post(CHAT, BODY).status_code == 200
    assert isinstance(server.executor, Executor) and not server.executor.closed
