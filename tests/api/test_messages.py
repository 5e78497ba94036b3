"""/v1/messages with Anthropic's own client on a real socket."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import httpx
import pytest
from pydantic import BaseModel

from .server import CONTEXT, MODEL, Executor, Running, serve

USER: Any = [{"role": "user", "content": "Hi"}]


def client(server: Running, **options: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(**{"base_url": server.url, "api_key": "none", "max_retries": 0, **options})


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, each checked to have its own type as its name."""
    events = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def test_a_message(server: Running) -> None:
    answer = client(server).messages.create(model=MODEL, max_tokens=8, messages=USER, extra_body={"temperature": 0})
    assert answer.type == "message" and answer.role == "assistant" and answer.model == MODEL
    assert answer.id.startswith("msg_") and answer.stop_reason == "max_tokens" and answer.stop_sequence is None
    assert [block.type for block in answer.content] == ["text"]
    assert answer.usage.output_tokens == 8


def test_streamed_and_whole_agree(server: Running) -> None:
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 40, "messages": USER, "extra_body": {"temperature": 0}}
    whole = client(server).messages.create(**asked)
    with client(server).messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == whole.content[0].text  # type: ignore[union-attr]
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    total = [u.input_tokens + (u.cache_read_input_tokens or 0) for u in (final.usage, whole.usage)]
    assert total[0] == total[1] == client(server).messages.count_tokens(model=MODEL, messages=USER).input_tokens


def test_the_order_of_events(server: Running) -> None:
    body = {"model": MODEL, "max_tokens": 5, "messages": USER, "stream": True, "temperature": 0}
    response = server.post("/v1/messages", body)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response)
    types = [event["type"] for event in events]
    assert types[:2] == ["message_start", "content_block_start"]
    assert types[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(types[2:-3]) == {"content_block_delta"}
    start = events[0]["message"]
    assert (
        start["content"] == []
        and start["stop_reason"] is None
        and start["usage"]["output_tokens"] < events[-2]["usage"]["output_tokens"]
    )
    assert events[1]["content_block"] == {"type": "text", "text": ""} and events[1]["index"] == 0
    assert events[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}


def test_the_async_client_streams(server: Running) -> None:
    async def ask() -> str:
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key="none") as api:
            stream = await api.messages.create(model=MODEL, max_tokens=5, messages=USER, stream=True)
            return "".join([e.delta.text async for e in stream if e.type == "content_block_delta"])  # type: ignore

    assert asyncio.run(ask())


def test_any_claude_name_is_an_alias(server: Running) -> None:
    for name in ("claude-nobody-knows", "claude-3-haiku-20240307"):
        assert client(server).messages.create(model=name, max_tokens=1, messages=USER).model == name
        assert client(server).messages.count_tokens(model=name, messages=USER).input_tokens > 0
    with pytest.raises(anthropic.NotFoundError, match="not served here"):
        client(server).messages.create(model="gpt-9", max_tokens=1, messages=USER)
    assert server.post("/v1/chat/completions", {"model": "claude-x", "messages": USER}).status_code == 404


def test_the_end_of_turn_and_stop_sequences() -> None:
    with serve(executor=Executor(script=lambda prompt: "One, two, three.")) as server:
        whole = client(server).messages.create(model=MODEL, max_tokens=50, messages=USER)
        assert (whole.content[0].text, whole.stop_reason) == ("One, two, three.", "end_turn")  # type: ignore[union-attr]
        for stream in (False, True):
            asked: dict[str, Any] = {"model": MODEL, "max_tokens": 50, "messages": USER, "stop_sequences": [", th"]}
            if stream:
                with client(server).messages.stream(**asked) as its:
                    answer: Any = its.get_final_message()
            else:
                answer = client(server).messages.create(**asked)
            assert answer.content[0].text == "One, two"
            assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", ", th")


def test_a_full_context_is_not_called_max_tokens(server: Running) -> None:
    body = {"max_tokens": CONTEXT, "messages": USER, "model": MODEL, "temperature": 0, "ignore_eos": True}
    with serve(executor=Executor(script=lambda prompt: "a" * CONTEXT)) as long:
        answer = long.post("/v1/messages", body).json()
    assert answer["stop_reason"] == "model_context_window_exceeded"


def test_usage_tells_what_came_from_the_cache() -> None:
    with serve() as server:
        long: Any = [{"role": "user", "content": "word " * 40}]
        first, second = (client(server).messages.create(model=MODEL, max_tokens=1, messages=long) for _ in range(2))
        assert first.usage.cache_read_input_tokens == 0
        assert second.usage.cache_read_input_tokens and second.usage.input_tokens < 10
        total = second.usage.input_tokens + second.usage.cache_read_input_tokens
        assert total == first.usage.input_tokens and second.usage.cache_creation_input_tokens == 0


def test_system_prompts_and_several_turns_reach_the_model() -> None:
    def script(prompt: str) -> str:
        assert "<|im_start|>system\nBe brief.<|im_end|>" in prompt
        assert "assistant\nYes?<|im_end|>\n<|im_start|>user\nHo<|im_end|>\n<|im_start|>assistant\n" in prompt
        return "Ok."

    turns: Any = [*USER, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Ho"}]
    with serve(executor=Executor(script=script)) as server:
        for system in ("Be brief.", [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]):
            answer = client(server).messages.create(
                model=MODEL,
                max_tokens=9,
                messages=turns,
                system=system,  # type: ignore[arg-type]
            )
            assert answer.content[0].text == "Ok."  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"messages": USER}, 400, "invalid_request_error"),
        ({"max_tokens": 0, "messages": USER}, 400, "invalid_request_error"),
        ({"max_tokens": 1, "messages": []}, 400, "invalid_request_error"),
        ({"max_tokens": 1, "messages": [{"role": "tool", "content": "a"}]}, 400, "invalid_request_error"),
        ({"max_tokens": 1, "messages": USER, "model": "other"}, 404, "not_found_error"),
        ({"max_tokens": 1, "messages": [{"role": "user", "content": "a" * 2000}]}, 400, "invalid_request_error"),
        ({"max_tokens": 1, "messages": USER, "stop_sequences": ["a"] * 99}, 400, "invalid_request_error"),
    ],
)
def test_errors_are_in_anthropics_shape(server: Running, body: dict[str, Any], status: int, kind: str) -> None:
    for stream in (False, True):
        response = server.post("/v1/messages", {**body, "stream": stream})
        error = response.json()
        assert response.status_code == status and error.keys() == {"type", "error"} and error["type"] == "error"
        assert error["error"].keys() == {"type", "message"} and error["error"]["type"] == kind
        assert error["error"]["message"]


def test_other_refusals_are_in_anthropics_shape() -> None:
    with serve(api_keys=("key",), max_body_bytes=1000) as server:
        with pytest.raises(anthropic.AuthenticationError, match="API key"):
            client(server).messages.create(model=MODEL, max_tokens=1, messages=USER)
        bearer = client(server, api_key=None, auth_token="key")
        assert bearer.messages.create(model=MODEL, max_tokens=1, messages=USER).stop_reason
        with pytest.raises(anthropic.APIStatusError, match="larger than 1000 bytes") as caught:
            bearer.messages.create(model=MODEL, max_tokens=1, messages=[{"role": "user", "content": "a" * 2000}])
        assert caught.value.status_code == 413 and caught.value.body["error"]["type"] == "request_too_large"  # type: ignore
        assert server.get("/v1/messages").json()["error"]["type"] == "authentication_error"
    response = server_error(405)
    assert response.json()["error"]["type"] == "invalid_request_error"


def server_error(status: int) -> httpx.Response:
    with serve() as server:
        response = server.get("/v1/messages")
        assert response.status_code == status
        return response


def test_a_full_queue_is_a_rate_limit() -> None:
    with serve(
        limits={"max_num_seqs": 1, "max_waiting": 0},
        executor=Executor(step_seconds=0.05, script=lambda prompt: "a" * 200),
    ) as server:
        with client(server).messages.stream(model=MODEL, max_tokens=100, messages=USER) as stream:
            next(iter(stream))
            with pytest.raises(anthropic.RateLimitError) as caught:
                client(server).messages.create(model=MODEL, max_tokens=1, messages=USER)
        assert caught.value.response.headers["retry-after"]
        server.wait_until_idle()


def test_a_failure_in_the_middle_is_an_error_event() -> None:
    with serve(executor=Executor(nan_at=60, script=lambda prompt: "a" * 200)) as server:
        asking = client(server).messages.stream(model=MODEL, max_tokens=100, messages=USER)
        with pytest.raises(anthropic.APIStatusError, match="not finite"), asking as stream:
            stream.get_final_message()
        body = {"model": MODEL, "max_tokens": 100, "messages": USER, "stream": True, "temperature": 0}
        last = events_of(server.post("/v1/messages", body))[-1]
        assert last["type"] == "error" and last["error"]["type"] == "api_error"


def test_a_silent_stream_pings() -> None:
    with serve(executor=Executor(step_seconds=0.3), keep_alive_seconds=0.1) as server:
        body = {"model": MODEL, "max_tokens": 2, "messages": USER, "stream": True}
        types = [event["type"] for event in events_of(server.post("/v1/messages", body))]
        assert types[:2] == ["message_start", "ping"] and types[-1] == "message_stop"
        with client(server).messages.stream(model=MODEL, max_tokens=2, messages=USER) as stream:
            assert stream.get_final_message().usage.output_tokens == 2


def test_a_client_that_leaves_frees_its_sequence() -> None:
    with serve(executor=Executor(step_seconds=0.02)) as server:
        with client(server).messages.stream(model=MODEL, max_tokens=400, messages=USER) as stream:
            next(iter(stream))
        server.wait_until_idle(2.0)


class Answer(BaseModel):
    yes: bool
    count: int


def test_an_output_format_is_enforced(server: Running) -> None:
    answer = client(server).messages.parse(model=MODEL, max_tokens=200, messages=USER, output_format=Answer)
    assert isinstance(answer.parsed_output, Answer)
    bad = {"type": "json_schema"}
    with pytest.raises(anthropic.BadRequestError, match=r"output_config\.format\.schema is required"):
        client(server).messages.create(
            model=MODEL,
            max_tokens=9,
            messages=USER,
            output_config={"format": bad},  # type: ignore[typeddict-item]
        )


def test_the_api_key_header_is_anthropics() -> None:
    with serve(api_keys=("key",)) as server:
        assert client(server, api_key="key").messages.create(model=MODEL, max_tokens=1, messages=USER).stop_reason
        with pytest.raises(anthropic.AuthenticationError):
            client(server, api_key="other").messages.count_tokens(model=MODEL, messages=USER)


def test_an_answer_that_was_begun_is_gone_on_with() -> None:
    def script(prompt: str) -> str:
        assert prompt.endswith("\nThe sum")
        return " is 7."

    turns: Any = [*USER, {"role": "assistant", "content": "The sum "}]
    with serve(executor=Executor(script=script)) as server:
        answer = client(server).messages.create(model=MODEL, max_tokens=20, messages=turns)
        assert answer.content[0].text == " is 7."  # type: ignore[union-attr]
        counted = client(server).messages.count_tokens(model=MODEL, messages=turns).input_tokens
        assert counted == answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)
        empty: Any = [*USER, {"role": "assistant", "content": " "}]
        with pytest.raises(anthropic.BadRequestError, match="can be continued"):
            client(server).messages.create(model=MODEL, max_tokens=20, messages=empty)


def test_models_as_anthropics_client_reads_them(server: Running) -> None:
    models = client(server).models.list()
    assert [model.id for model in models] == [MODEL, "tiny"] and models.data[0].display_name == MODEL
    assert client(server).models.retrieve(MODEL).created_at.year >= 2024
