"""/v1/responses with OpenAI's own client on a real socket."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from .server import MODEL, Executor, Running, serve
from .test_requests import error_of

PATH = "/v1/responses"
ASK: dict[str, Any] = {"model": MODEL, "input": "Hi", "max_output_tokens": 20, "temperature": 0}


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, each under its own name, numbered from 0 without a gap."""
    events = []
    for number, block in enumerate(response.text.strip().split("\n\n")):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}" and events[-1]["sequence_number"] == number
    return events


@pytest.fixture(scope="module")
def talker() -> Any:
    """Says how many messages it was sent."""
    with serve(executor=Executor(script=lambda prompt: f"Turn {prompt.count('<|im_start|>') - 1}.")) as server:
        yield server


def test_a_response(talker: Running) -> None:
    answer = talker.openai().responses.create(model=MODEL, input="Hi", instructions="Be.", metadata={"a": "b"})
    assert answer.output_text == "Turn 2." and answer.status == "completed" and answer.model == MODEL
    assert answer.id.startswith("resp_") and answer.instructions == "Be." and answer.metadata == {"a": "b"}
    [message] = answer.output
    assert message.type == "message" and message.role == "assistant" and message.status == "completed"
    assert answer.usage and answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.error is None and answer.incomplete_details is None and answer.tool_choice == "auto"
    assert answer.tools == [] and answer.parallel_tool_calls is True and answer.text and answer.text.format


def test_the_order_of_events(talker: Running) -> None:
    events = events_of(talker.post(PATH, {**ASK, "stream": True}))
    types = [event["type"].removeprefix("response.") for event in events]
    deltas = types.count("output_text.delta")
    assert deltas > 1 and types == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * deltas,
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    for event in events[3:-2]:
        assert event["item_id"] == events[2]["item"]["id"] and event["output_index"] == event["content_index"] == 0
    assert "".join(event.get("delta", "") for event in events) == events[-4]["text"] == "Turn 1."
    assert events[0]["response"]["status"] == "in_progress" and events[0]["response"]["output"] == []
    final = events[-1]["response"]
    assert final["output"] == [events[-2]["item"]] and final["usage"]["output_tokens"] > 1
    assert {event["response"]["id"] for event in events if "response" in event} == {final["id"]}


def test_streamed_and_whole_agree(server: Running) -> None:
    asked = {**ASK, "extra_body": {"ignore_eos": True}}
    whole = server.openai().responses.create(**asked)
    chunks = list(server.openai().responses.create(**asked, stream=True))
    final: Any = chunks[-1]
    assert final.type == "response.incomplete" and whole.status == final.response.status == "incomplete"
    assert whole.incomplete_details and whole.incomplete_details.reason == "max_output_tokens"
    assert final.response.output_text == whole.output_text
    assert final.response.output[0].status == whole.output[0].status == "incomplete"  # type: ignore[union-attr]
    assert final.response.usage.output_tokens == 20 == whole.usage.output_tokens  # type: ignore[union-attr]


def test_the_stream_helper(talker: Running) -> None:
    with talker.openai().responses.stream(model=MODEL, input="Hi") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == "Turn 1."


def test_the_async_client(talker: Running) -> None:
    async def ask() -> str:
        async with talker.async_openai() as api, api.responses.stream(model=MODEL, input="Hi") as stream:
            return (await stream.get_final_response()).output_text

    assert asyncio.run(ask()) == "Turn 1."


def test_a_conversation_goes_on_from_a_stored_response(talker: Running) -> None:
    api = talker.openai()
    first = api.responses.create(model=MODEL, input="One", instructions="Not carried over.")
    assert first.output_text == "Turn 2."
    with api.responses.stream(model=MODEL, input="Two", previous_response_id=first.id) as stream:
        second = stream.get_final_response()
    assert second.output_text == "Turn 3." and second.previous_response_id == first.id
    third = api.responses.create(model=MODEL, input="Three", previous_response_id=second.id)
    assert third.output_text == "Turn 5."
    by_hand: Any = [
        {"role": "user", "content": "One"},
        *[i.to_dict() for i in first.output],
        {"id": second.output[0].id},
    ]
    assert api.responses.create(model=MODEL, input=by_hand).output_text == "Turn 2."  # one turn of the assistant's


def test_stored_responses_can_be_read_and_forgotten(talker: Running) -> None:
    api = talker.openai()
    made = api.responses.create(model=MODEL, input="One")
    assert api.responses.retrieve(made.id).to_dict() == made.to_dict()
    [item] = api.responses.input_items.list(made.id).data
    assert item.type == "message" and item.id
    api.responses.delete(made.id)
    for forgotten in (lambda: api.responses.retrieve(made.id), lambda: api.responses.delete(made.id)):
        with pytest.raises(openai.NotFoundError, match="no longer stored"):
            forgotten()
    with pytest.raises(openai.BadRequestError) as caught:
        api.responses.create(model=MODEL, input="Two", previous_response_id=made.id)
    assert caught.value.code == "previous_response_not_found" and caught.value.param == "previous_response_id"


@pytest.mark.parametrize("stream", [False, True])
def test_store_false_stores_nothing(talker: Running, stream: bool) -> None:
    answer: Any = talker.post(PATH, {**ASK, "store": False, "stream": stream})
    body = events_of(answer)[-1]["response"] if stream else answer.json()
    assert body["store"] is False
    error_of(talker.get(f"{PATH}/{body['id']}"), 404)


def test_a_server_may_store_nothing() -> None:
    with serve(stored_responses=0) as server:
        made = server.openai().responses.create(**ASK)
        error_of(server.get(f"{PATH}/{made.id}"), 404)


def test_log_probabilities(server: Running) -> None:
    asked = {**ASK, "top_logprobs": 2, "include": ["message.output_text.logprobs"]}
    whole: Any = server.openai().responses.create(**asked)
    logprobs = whole.output[0].content[0].logprobs
    assert len(logprobs) == whole.usage.output_tokens and len(logprobs[0].top_logprobs) == 2
    events: Any = list(server.openai().responses.create(**asked, stream=True))
    streamed = [entry for event in events if event.type == "response.output_text.delta" for entry in event.logprobs]
    assert len(streamed) == len(logprobs)
    assert events[-1].response.output[0].content[0].logprobs == logprobs


def test_usage_tells_what_came_from_the_cache() -> None:
    with serve() as server:
        asked = {**ASK, "input": "word " * 40}
        usages: Any = [server.openai().responses.create(**asked).usage for _ in range(2)]
        assert usages[0].input_tokens_details.cached_tokens == 0 < usages[1].input_tokens_details.cached_tokens


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": MODEL}, 400, "input"),
        ({"input": []}, 400, "input"),
        ({"input": "a" * 2000}, 400, "input"),
        ({"input": "a", "model": "other"}, 404, "model"),
        ({"input": "a", "max_output_tokens": 0}, 400, None),
        ({"input": "a", "previous_response_id": "resp_x"}, 400, "previous_response_id"),
        ({"input": "a", "background": True}, 400, "background"),
        ({"input": 5}, 400, "input"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals(server: Running, body: dict[str, Any], status: int, param: str | None, stream: bool) -> None:
    error = error_of(server.post(PATH, {**body, "stream": stream}), status)
    assert param is None or error["param"] == param


def test_a_failure_in_the_middle_is_seen_by_every_reader() -> None:
    with serve(executor=Executor(nan_at=60, script=lambda prompt: "a" * 200)) as server:
        asked = {**ASK, "max_output_tokens": 100}
        events = events_of(server.post(PATH, {**asked, "stream": True}))
        assert [event["type"] for event in events[-2:]] == ["response.failed", "error"]
        assert (
            events[-2]["response"]["status"] == "failed" and "not finite" in events[-2]["response"]["error"]["message"]
        )
        with pytest.raises(openai.APIError, match="not finite"):
            list(server.openai().responses.create(**asked, stream=True))
        with pytest.raises(openai.InternalServerError, match="not finite"):
            server.openai().responses.create(**asked)


def test_a_silent_stream_shows_that_it_lives() -> None:
    with serve(executor=Executor(step_seconds=0.3), keep_alive_seconds=0.1) as server:
        events = events_of(server.post(PATH, {**ASK, "max_output_tokens": 2, "stream": True}))
        assert [event["type"] for event in events[:3]] == ["response.created", *["response.in_progress"] * 2]
        final: Any = list(server.openai().responses.create(**{**ASK, "max_output_tokens": 2}, stream=True))[-1]
        assert final.type == "response.incomplete"


def test_a_client_that_leaves_frees_its_sequence_and_stores_nothing() -> None:
    with serve(executor=Executor(step_seconds=0.02)) as server:
        stream = server.openai().responses.create(**{**ASK, "max_output_tokens": 400}, stream=True)
        made: Any = next(iter(stream))
        stream.close()
        server.wait_until_idle(2.0)
        error_of(server.get(f"{PATH}/{made.response.id}"), 404)


class Answer(BaseModel):
    yes: bool
    count: int


def test_parse_gives_what_the_schema_says(server: Running) -> None:
    asked: Any = {"model": MODEL, "input": "Hi", "text_format": Answer, "max_output_tokens": 200}
    assert isinstance(server.openai().responses.parse(**asked).output_parsed, Answer)
    with server.openai().responses.stream(**asked) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Answer)
    anything = server.openai().responses.create(**{**ASK, "text": {"format": {"type": "json_object"}}}).output_text
    assert anything.startswith("{")


def test_what_cannot_be_enforced_is_refused_in_this_endpoints_words(server: Running) -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "https://example.com/x"}}}
    given = {"type": "json_schema", "name": "n", "schema": schema}
    error = error_of(server.post(PATH, {**ASK, "text": {"format": given}}))
    assert error["param"].startswith("text.format") and "response_format" not in error["message"]
    error = error_of(server.post(PATH, {**ASK, "max_output_tokens": 0}))
    assert "max_output_tokens" in error["message"] and error["param"] == "max_output_tokens"


def test_input_tokens_are_counted(talker: Running) -> None:
    api = talker.openai()
    made: Any = api.responses.create(model=MODEL, input="Hi", instructions="Be.")
    counted = api.responses.input_tokens.count(model=MODEL, input="Hi", instructions="Be.")
    assert counted.input_tokens == made.usage.input_tokens
    more = api.responses.input_tokens.count(model=MODEL, input="So?", previous_response_id=made.id)
    assert more.input_tokens > counted.input_tokens


def test_truncation_drops_the_oldest_turns() -> None:
    """The longest end of the conversation that leaves room for an answer, and the system's words before it."""
    seen: list[str] = []

    def script(prompt: str) -> str:
        seen.append(prompt)
        return "Ok."

    turns: Any = [{"role": "developer", "content": "Rules."}]
    for number in range(20):
        turns += [{"role": "user", "content": f"Question {number} {'x' * 40}"}, {"role": "assistant", "content": "A."}]
    turns += [{"role": "user", "content": "Last"}]
    with serve(executor=Executor(script=script)) as server:
        asked: Any = {"model": MODEL, "input": turns, "instructions": "Be.", "max_output_tokens": 50}
        error = error_of(server.post(PATH, asked))
        assert error["code"] == "context_length_exceeded" and error["param"] == "input"
        answer = server.openai().responses.create(**asked, truncation="auto")
        assert answer.output_text == "Ok." and answer.truncation == "auto" and answer.usage
        prompt = seen[-1]
        assert "Be." in prompt and "Rules." in prompt and prompt.rstrip().endswith("assistant") and "Last" in prompt
        assert "Question 19 " in prompt and "Question 0 " not in prompt
        longer = answer.usage.input_tokens + 2 * (len(server.tokenizer.encode(f"Question 10 {'x' * 40}")))
        assert answer.usage.input_tokens <= 512 - 50 < longer  # one turn more would not have fitted
        kept = prompt.index("Question")
        assert prompt[:kept].rstrip().endswith("user")  # no answer without its question
        long = {**asked, "input": "y" * 3000, "truncation": "auto"}
        assert error_of(server.post(PATH, long))["code"] == "context_length_exceeded"
        assert server.post(PATH, {**asked, "input": "Hi", "truncation": "auto"}).json()["output"]
        error_of(server.post(PATH, {**asked, "truncation": "some"}))
