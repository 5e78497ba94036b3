"""Tools, end to end: offered in the prompt, called in every format, whole and streamed, at will and by force."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import jsonschema
import openai
import pytest
from pydantic import BaseModel

from ..text import templates
from .server import MODEL, Executor, Running, serve
from .test_requests import error_of

USER: list[Any] = [{"role": "user", "content": "Hi"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "description": "x", "parameters": PARAMETERS}}
CLOCK: Any = {"type": "function", "function": {"name": "clock"}}
ASK: dict[str, Any] = {"model": MODEL, "messages": USER, "tools": [WEATHER, CLOCK], "max_tokens": 300}
HERE = '{"name": "weather", "arguments": {"city": "Zürich"}}'
TIME = '{"name": "clock", "arguments": {}}'

ANSWERS = {
    "hermes": f"See.\n<tool_call>\n{HERE}\n</tool_call>\n<tool_call>\n{TIME}\n</tool_call>",
    "llama3_json": f"<|python_tag|>{HERE}; {TIME}".replace("arguments", "parameters"),
    "mistral": f"See. [TOOL_CALLS][{HERE}, {TIME}]",
    "pythonic": '<|python_start|>[weather(city="Zürich"), clock()]<|python_end|>',
    "json": f"[{HERE}, {TIME}]",
}


def saying(text: str) -> Executor:
    return Executor(script=lambda prompt: text, vocab_size=272, max_model_len=1024)


def streamed(server: Running, **ask: Any) -> tuple[list[dict[str, Any]], str]:
    """The deltas of choice 0 as they are on the wire, and its finish reason."""
    deltas, reasons = [], []
    for chunk in server.openai().chat.completions.create(**ask, stream=True):
        choice = chunk.choices[0]
        deltas.append(choice.delta.model_dump(exclude_unset=True))
        reasons += [choice.finish_reason] if choice.finish_reason else []
    (reason,) = reasons
    return deltas, reason


@pytest.mark.parametrize("form", ANSWERS)
def test_calls_whole_and_streamed(form: str) -> None:
    with serve(executor=saying(ANSWERS[form]), tool_call_format=form) as server:
        choice = server.openai().chat.completions.create(**ASK).choices[0]
        assert choice.finish_reason == "tool_calls"
        calls: Any = choice.message.tool_calls
        assert [(c.type, c.function.name) for c in calls] == [("function", "weather"), ("function", "clock")]
        assert [json.loads(c.function.arguments) for c in calls] == [{"city": "Zürich"}, {}]
        assert len({c.id for c in calls}) == 2
        said = "See." if "See" in ANSWERS[form] else None
        assert choice.message.content == said

        deltas, reason = streamed(server, **ASK)
        assert reason == "tool_calls"
        assert [d for d in deltas if "role" in d] == deltas[:1]
        assert "".join(d.get("content") or "" for d in deltas) == (said or "")
        pieces = [call for d in deltas for call in d.get("tool_calls", [])]
        assert [p["index"] for p in pieces] == sorted(p["index"] for p in pieces)
        for index, whole in enumerate(calls):
            own = [p for p in pieces if p["index"] == index]
            assert own[0]["id"] and own[0]["type"] == "function" and own[0]["function"]["name"] == whole.function.name
            assert all(p.keys() == {"index", "function"} and p["function"].keys() == {"arguments"} for p in own[1:])
            assert "".join(p["function"]["arguments"] for p in own) == whole.function.arguments
        assert len([p for p in pieces if p["index"] == 0]) > 3, "arguments come while they are written"


def test_the_librarys_own_stream_puts_calls_together() -> None:
    with serve(executor=saying(ANSWERS["hermes"])) as server:
        with server.openai().chat.completions.stream(**ASK) as stream:
            events = list(stream)
            message = stream.get_final_completion().choices[0].message
        assert [c.function.name for c in message.tool_calls or []] == ["weather", "clock"]
        done: Any = [event for event in events if event.type == "tool_calls.function.arguments.done"]
        assert [json.loads(event.arguments) for event in done] == [{"city": "Zürich"}, {}]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>weather(Zürich)</tool_call>",
        '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "weather", "arg',
        "a < b and {",
    ],
)
def test_what_is_no_call_is_text(text: str) -> None:
    with serve(executor=saying(text)) as server:
        choice = server.openai().chat.completions.create(**ASK).choices[0]
        assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (text, None, "stop")
        deltas, reason = streamed(server, **ASK)
        assert "".join(d.get("content") or "" for d in deltas) == text and reason == "stop"


def test_a_call_that_is_cut_off_says_length() -> None:
    with serve(executor=saying(ANSWERS["hermes"])) as server:
        choice = server.openai().chat.completions.create(**{**ASK, "max_tokens": 60}).choices[0]
        assert choice.finish_reason == "length"
        (call,) = choice.message.tool_calls or []
        assert call.type == "function" and call.function.name == "weather"
        assert not call.function.arguments.endswith("}")


def test_one_call_only_if_parallel_calls_are_not_wanted() -> None:
    with serve(executor=saying(ANSWERS["hermes"])) as server:
        choice = server.openai().chat.completions.create(**ASK, parallel_tool_calls=False).choices[0]
        assert len(choice.message.tool_calls or []) == 1


def test_none_and_allowed_tools() -> None:
    with serve(executor=saying(ANSWERS["hermes"])) as server:
        client = server.openai()
        choice = client.chat.completions.create(**ASK, tool_choice="none").choices[0]
        assert (choice.message.content, choice.finish_reason) == (ANSWERS["hermes"], "stop")
        named = {"type": "function", "function": {"name": "clock"}}
        allowed: Any = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named]}}
        choice = client.chat.completions.create(**ASK, tool_choice=allowed).choices[0]
        assert [c.function.name for c in choice.message.tool_calls or []] == ["clock"]  # type: ignore[union-attr]


def called(choice: Any) -> list[str]:
    """The names of a choice's calls, of which each is checked to be what was offered."""
    schemas: dict[str, Any] = {"weather": PARAMETERS, "clock": {"type": "object", "maxProperties": 0}}
    for call in choice.message.tool_calls:
        jsonschema.validate(json.loads(call.function.arguments), schemas[call.function.name])
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    return [call.function.name for call in choice.message.tool_calls]


@pytest.mark.parametrize("form", ANSWERS)
def test_noise_makes_calls_when_it_must(form: str) -> None:
    """The model's tokens are random; the grammar alone makes calls of them."""
    named: Any = {"type": "function", "function": {"name": "weather"}}
    noise = {**ASK, "max_tokens": 1500}
    with serve(executor=Executor(vocab_size=272, max_model_len=2048), tool_call_format=form) as server:
        client = server.openai()
        seen = set()
        for seed in range(6):
            ask = {**noise, "seed": seed, "parallel_tool_calls": False}
            (name,) = called(client.chat.completions.create(**ask, tool_choice="required").choices[0])
            seen.add(name)
            assert called(client.chat.completions.create(**ask, tool_choice=named).choices[0]) == ["weather"]
        assert seen == {"weather", "clock"}
        asks: list[Any] = [{**noise, "seed": seed, "tool_choice": "required"} for seed in range(6)]
        many = [called(client.chat.completions.create(**ask).choices[0]) for ask in asks]
        assert max(map(len, many)) > 1


def test_calls_that_must_be_made_leave_room_for_thought() -> None:
    thought = "<think>\nThe weather? <tool_call>\n</think>\n\n"
    with serve(executor=saying(thought + f"<tool_call>\n{HERE}\n</tool_call>")) as server:
        thinking = {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}}
        answer = server.openai().chat.completions.create(**ASK, tool_choice="required", **thinking)
        message: Any = answer.choices[0].message
        assert message.reasoning_content == "The weather? <tool_call>"
        assert [json.loads(c.function.arguments) for c in message.tool_calls] == [{"city": "Zürich"}]
        message = server.openai().chat.completions.create(**ASK, tool_choice="required").choices[0].message
        assert message.tool_calls and not hasattr(message, "reasoning_content")


def test_structured_output_and_calls_are_either_or() -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    for text, calls in ((ANSWERS["hermes"][5:], 2), ('{"ok": true}', 0)):
        with serve(executor=saying(text)) as server:
            message = server.openai().chat.completions.create(**ASK, response_format=wanted).choices[0].message
            assert len(message.tool_calls or []) == calls
            assert message.content == (None if calls else text)


FORMATS: dict[str, dict[str, Any]] = {
    "object": {"response_format": {"type": "json_object"}},
    "schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}},
    "regex": {"guided_regex": "[a-z]{3}"},
    "choice": {"guided_choice": ["yes", "no"]},
    "grammar": {"structured_outputs": {"grammar": 'root ::= "hello"'}},
    "array": {"guided_json": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}},
}
ENFORCED: dict[str, Any] = {
    "required": "required",
    "named": {"type": "function", "function": {"name": "weather"}},
    "allowed": {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "weather"}}]},
    },
}


@pytest.mark.parametrize("form", ["hermes", "json", "pythonic"])
def test_one_tool_that_must_be_called_is_called_whatever_format_the_text_would_have(form: str) -> None:
    seeds = iter(range(100))
    with serve(executor=Executor(vocab_size=272, max_model_len=1024), tool_call_format=form) as server:
        for wanted in FORMATS.values():
            for choice in ENFORCED.values():
                for tools in ([WEATHER], [WEATHER, CLOCK]):
                    ask = {**ASK, "tools": tools, "tool_choice": choice, "seed": next(seeds), **wanted}
                    ask["parallel_tool_calls"] = False  # noise would go on calling
                    (answer,) = server.post("/v1/chat/completions", ask).json()["choices"]
                    message = answer["message"]
                    assert message["tool_calls"] and not message["content"], (wanted, choice)
                    assert {call["function"]["name"] for call in message["tool_calls"]} <= {"weather", "clock"}
        function = {"type": "function", **WEATHER["function"]}
        text = {"format": {"type": "json_object"}}
        body = {"input": "Hi", "tools": [function], "tool_choice": "required", "text": text, "max_output_tokens": 300}
        body["parallel_tool_calls"] = False
        output = server.post("/v1/responses", body).json()["output"]
        assert {item["type"] for item in output} == {"function_call"}
        body = {"messages": USER, "max_tokens": 300, "tool_choice": {"type": "any", "disable_parallel_tool_use": True}}
        body |= {"tools": [{"name": "weather", "input_schema": PARAMETERS}]}
        body |= {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}}
        message = server.post("/v1/messages", body).json()
        assert {block["type"] for block in message["content"]} == {"tool_use"}


@pytest.mark.parametrize(
    ("parameters", "param", "word"),
    [
        ({"type": "string"}, "tools[1].function.parameters", '"string"'),
        ({"type": "object", "properties": {"a": {"not": {"type": "string"}}}}, "tools[1].function.parameters", "not"),
        (
            {"type": "object", "propertyNames": {"pattern": "a"}, "required": ["b"]},
            "tools[1].function.parameters",
            "propertyNames",
        ),
    ],
)
def test_arguments_that_cannot_be_enforced_are_refused(server: Running, parameters: Any, param: str, word: str) -> None:
    tools = [CLOCK, {"type": "function", "function": {"name": "f", "parameters": parameters}}]
    error = error_of(server.post("/v1/chat/completions", {**ASK, "tools": tools, "tool_choice": "required"}))
    assert error["param"] == param and word in error["message"]
    assert (
        server.post("/v1/chat/completions", {**ASK, "tools": tools, "max_tokens": 1}).status_code == 200
    )  # not enforced


def test_a_template_that_takes_no_tools(server: Running) -> None:
    with serve(template=templates.MISTRAL) as other:
        error = error_of(other.post("/v1/chat/completions", ASK))
        assert error["param"] == "tools" and "does not take tools" in error["message"]


def test_a_round_trip() -> None:
    """The model calls, the client answers, the model sees both."""
    prompts: list[str] = []

    def script(prompt: str) -> str:
        prompts.append(prompt)
        return "It is sunny." if "sunny" in prompt else ANSWERS["hermes"]

    with serve(executor=Executor(script=script, max_model_len=1024)) as server:
        client = server.openai()
        first = client.chat.completions.create(**ASK).choices[0].message
        results: list[Any] = [
            {"role": "tool", "tool_call_id": call.id, "content": [{"type": "text", "text": "sunny"}]}
            for call in first.tool_calls or []
        ]
        messages = [*USER, first, *results]
        answer = client.chat.completions.create(**{**ASK, "messages": messages}).choices[0]
        assert (answer.message.content, answer.finish_reason) == ("It is sunny.", "stop")
        assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}' in prompts[-1]
        assert prompts[-1].count("sunny") == 2 and '"maxLength": 6' in prompts[0]


def test_an_unknown_format_is_an_error_of_the_settings() -> None:
    from llmserve.errors import ConfigError

    with pytest.raises(ConfigError, match="did you mean 'hermes'"), serve(tool_call_format="hermess"):
        pass


def test_ids_are_those_that_mistrals_templates_take() -> None:
    with serve(executor=saying(ANSWERS["mistral"]), tool_call_format="mistral") as server:
        calls = server.openai().chat.completions.create(**ASK).choices[0].message.tool_calls or []
        assert all(re.fullmatch("[a-zA-Z0-9]{9}", call.id) for call in calls)


def test_legacy_functions_are_refused_in_words(server: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="tools"):
        server.openai().chat.completions.create(model=MODEL, messages=USER, functions=[{"name": "f"}])


class Weather(BaseModel):
    """The weather of a city."""

    city: str


def test_the_librarys_parser_reads_calls_and_answers() -> None:
    tool = openai.pydantic_function_tool(Weather, name="weather")
    with serve(executor=saying(f"<tool_call>{HERE}</tool_call>")) as server:
        message = server.openai().chat.completions.parse(model=MODEL, messages=USER, tools=[tool]).choices[0].message
        (call,) = message.tool_calls or []
        assert call.function.parsed_arguments == Weather(city="Zürich")

        async def stream() -> Any:
            client = server.async_openai()
            async with client.chat.completions.stream(model=MODEL, messages=USER, tools=[tool]) as events:
                async for _ in events:
                    pass
                return (await events.get_final_completion()).choices[0].message

        (call,) = asyncio.run(stream()).tool_calls
        assert call.function.parsed_arguments == Weather(city="Zürich")
    with serve(executor=saying('{"city": "Zürich"}')) as server:
        answer = server.openai().chat.completions.parse(model=MODEL, messages=USER, response_format=Weather)
        assert answer.choices[0].message.parsed == Weather(city="Zürich")


def test_every_choice_counts_its_own_calls() -> None:
    with serve(executor=saying(ANSWERS["hermes"])) as server:
        with server.openai().chat.completions.stream(**ASK, n=2) as stream:
            seen = [chunk.chunk for chunk in stream if chunk.type == "chunk"]
            final = stream.get_final_completion()
        assert seen[0].choices[0].index == 0
        for choice in final.choices:
            names = [call.function.name for call in choice.message.tool_calls or []]
            assert (names, choice.finish_reason) == (["weather", "clock"], "tool_calls")
        ids = [call.id for choice in final.choices for call in choice.message.tool_calls or []]
        assert len(set(ids)) == 4


def test_logprobs_cover_every_token_of_a_call() -> None:
    with serve(executor=saying(ANSWERS["hermes"])) as server:
        ask = {**ASK, "logprobs": True, "top_logprobs": 1}
        answer = server.openai().chat.completions.create(**ask)
        content: Any = answer.choices[0].logprobs and answer.choices[0].logprobs.content
        assert answer.usage and len(content) == answer.usage.completion_tokens
        streamed = []
        for chunk in server.openai().chat.completions.create(**ask, stream=True):
            streamed += (chunk.choices[0].logprobs and chunk.choices[0].logprobs.content) or []
        assert streamed == content


def test_silence_while_a_call_is_held_back_is_broken() -> None:
    """Nothing can be shown of a call before its name is known; the client still hears that the server lives."""
    text = '<tool_call>{"id": "' + "x" * 60 + '", "name": "clock"}</tool_call>'
    executor = saying(text)
    executor.step_seconds = 0.01
    with serve(executor=executor, keep_alive_seconds=0.1) as server:
        deltas, reason = streamed(server, **ASK)
        assert reason == "tool_calls" and deltas.count({}) >= 4
