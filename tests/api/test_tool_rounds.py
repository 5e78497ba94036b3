"""Tools through /v1/responses and /v1/messages: a call, its result and the answer, with each vendor's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, ClassVar

import anthropic
import openai
import pytest
from pydantic import BaseModel

from .server import MODEL, Executor, Running, serve
from .test_messages import client as anthropic_client
from .test_messages import events_of as message_events
from .test_responses import events_of as response_events

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION: dict[str, Any] = {"name": "weather", "description": "The weather.", "parameters": SCHEMA, "strict": True}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "%s"}}\n</tool_call>'


def script(prompt: str) -> str:
    """Asks for two cities' weather, having thought and said so, and then tells it."""
    if "<|im_start|>tool" in prompt:
        assert prompt.index("Rain") < prompt.index("Sun"), "results in the order of the calls"
        assert '{"name": "weather", "arguments": {"city": "Oslo"}}' in prompt
        return "Rain there, sun here."
    if "No tools" in prompt:
        return "None."
    thought = "<think>\nTwo cities.\n</think>\n\n" if "ponder" in prompt else ""
    return f"{thought}Let me see.\n{CALL % 'Oslo'}\n{CALL % 'Rome'}"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serve(executor=Executor(script=script, max_model_len=2048, num_pages=2048)) as running:
        yield running


class TestResponses:
    tools: ClassVar[Any] = [
        {"type": "web_search"},
        {"type": "function", **FUNCTION},
        {"type": "custom", "name": "patch"},
    ]

    def ask(self, server: Running, **fields: Any) -> Any:
        asked = {"model": MODEL, "input": "Hi", "tools": self.tools, **fields}
        return server.openai().responses.create(**asked)

    def test_a_round_with_items_sent_back(self, server: Running) -> None:
        first = self.ask(server)
        assert [item.type for item in first.output] == ["message", "function_call", "function_call"]
        assert first.output_text.strip() == "Let me see." and first.status == "completed"
        calls = [item for item in first.output if item.type == "function_call"]
        assert [json.loads(call.arguments) for call in calls] == [{"city": "Oslo"}, {"city": "Rome"}]
        assert len({call.call_id for call in calls}) == 2 and all(call.name == "weather" for call in calls)
        results = [
            {"type": "function_call_output", "call_id": call.call_id, "output": text}
            for call, text in zip(calls, ("Rain", "Sun"), strict=True)
        ]
        sent_back = [{"role": "user", "content": "Hi"}, *first.output, *results]
        assert self.ask(server, input=sent_back).output_text == "Rain there, sun here."
        stored = self.ask(server, input=results, previous_response_id=first.id)
        assert stored.output_text == "Rain there, sun here."

    def test_streamed_calls(self, server: Running) -> None:
        body = {"model": MODEL, "input": "Hi", "tools": self.tools, "stream": True}
        events = response_events(server.post("/v1/responses", body))
        done = [e for e in events if e["type"] == "response.function_call_arguments.done"]
        for end in done:
            pieces = [
                e["delta"] for e in events if e["type"].endswith("arguments.delta") and e["item_id"] == end["item_id"]
            ]
            assert "".join(pieces) == end["arguments"] and json.loads(end["arguments"])
        assert [json.loads(end["arguments"])["city"] for end in done] == ["Oslo", "Rome"]
        with server.openai().responses.stream(model=MODEL, input="Hi", tools=self.tools) as stream:
            final = stream.get_final_response()
        assert [item.type for item in final.output] == ["message", "function_call", "function_call"]

    def test_arguments_are_parsed_by_the_client(self, server: Running) -> None:
        class weather(BaseModel):
            city: str

        tools = [openai.pydantic_function_tool(weather)]
        function: Any = {"type": "function", **tools[0]["function"]}
        parsed = server.openai().responses.parse(model=MODEL, input="Hi", tools=[function])
        calls: Any = [item for item in parsed.output if item.type == "function_call"]
        assert [call.parsed_arguments["city"] for call in calls] == ["Oslo", "Rome"] or [
            call.parsed_arguments.city for call in calls
        ] == ["Oslo", "Rome"]

    @pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
    def test_enforced_calls(self, server: Running, choice: Any) -> None:
        answer = self.ask(server, input="No tools", tool_choice=choice, max_output_tokens=200)
        calls = [item for item in answer.output if item.type == "function_call"]
        assert calls and all(set(json.loads(call.arguments)) == {"city"} for call in calls)

    def test_none_and_no_tools(self, server: Running) -> None:
        assert self.ask(server, input="No tools", tool_choice="none").output_text == "None."
        assert self.ask(server, input="No tools", tools=[{"type": "web_search"}]).output_text == "None."

    def test_reasoning_is_an_item_and_is_taken_back(self, server: Running) -> None:
        asked: Any = {"input": "ponder", "reasoning": {"effort": "low", "summary": "auto"}}
        answer = self.ask(server, **asked)
        assert [item.type for item in answer.output] == ["reasoning", "message", "function_call", "function_call"]
        thought = answer.output[0]
        assert thought.content[0].text.strip() == thought.summary[0].text.strip() == "Two cities."
        assert answer.usage.output_tokens_details.reasoning_tokens > 0
        events = list(self.ask(server, **asked, stream=True))
        deltas = [e.delta for e in events if e.type == "response.reasoning_text.delta"]
        summary = [e.delta for e in events if e.type == "response.reasoning_summary_text.delta"]
        assert "".join(deltas) == "".join(summary) == thought.content[0].text
        results = [
            {"type": "function_call_output", "call_id": call.call_id, "output": text}
            for call, text in zip(answer.output[2:], ("Rain", "Sun"), strict=True)
        ]
        sent_back = [{"role": "user", "content": "ponder"}, *answer.output, *results]
        assert self.ask(server, input=sent_back).output_text == "Rain there, sun here."

    def test_a_call_that_is_cut_off_is_incomplete(self, server: Running) -> None:
        answer = self.ask(server, max_output_tokens=40)
        assert answer.status == "incomplete" and answer.output[-1].status == "incomplete"


class TestMessages:
    tools: ClassVar[Any] = [
        {"type": "web_search_20250305", "name": "web_search"},
        {"name": "weather", "description": "The weather.", "input_schema": SCHEMA},
    ]

    def ask(self, server: Running, **fields: Any) -> Any:
        asked = {"model": "claude-x", "max_tokens": 300, "messages": self.user("Hi"), "tools": self.tools, **fields}
        return anthropic_client(server).messages.create(**asked)

    @staticmethod
    def user(content: Any) -> Any:
        return [{"role": "user", "content": content}]

    def test_a_round(self, server: Running) -> None:
        first = self.ask(server)
        assert [block.type for block in first.content] == ["text", "tool_use", "tool_use"]
        assert first.stop_reason == "tool_use"
        calls = first.content[1:]
        assert [call.input for call in calls] == [{"city": "Oslo"}, {"city": "Rome"}]
        results = [
            {"type": "tool_result", "tool_use_id": call.id, "content": text}
            for call, text in zip(calls, ("Rain", "Sun"), strict=True)
        ]
        turns = [*self.user("Hi"), {"role": "assistant", "content": first.content}, *self.user(results)]
        second = self.ask(server, messages=turns)
        assert second.content[0].text == "Rain there, sun here." and second.stop_reason == "end_turn"
        counted = anthropic_client(server).messages.count_tokens(model="claude-x", messages=turns, tools=self.tools)
        usage = second.usage
        assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens

    def test_streamed_calls(self, server: Running) -> None:
        body = {"model": MODEL, "max_tokens": 300, "messages": self.user("Hi"), "tools": self.tools, "stream": True}
        events = message_events(server.post("/v1/messages", body))
        starts = [e for e in events if e["type"] == "content_block_start"]
        assert [start["content_block"]["type"] for start in starts] == ["text", "tool_use", "tool_use"]
        assert [start["index"] for start in starts] == [0, 1, 2]
        for start in starts[1:]:
            pieces = [
                e["delta"]["partial_json"]
                for e in events
                if e["type"] == "content_block_delta" and e["index"] == start["index"]
            ]
            assert start["content_block"]["input"] == {} and json.loads("".join(pieces))
        assert events[-2]["delta"]["stop_reason"] == "tool_use"
        with anthropic_client(server).messages.stream(
            model=MODEL, max_tokens=300, messages=self.user("Hi"), tools=self.tools
        ) as stream:
            final: Any = stream.get_final_message()
        assert [block.input for block in final.content[1:]] == [{"city": "Oslo"}, {"city": "Rome"}]

    @pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
    def test_enforced_calls(self, server: Running, choice: Any) -> None:
        answer = self.ask(server, messages=self.user("No tools"), tool_choice=choice)
        assert answer.stop_reason == "tool_use"
        assert all(set(block.input) == {"city"} for block in answer.content if block.type == "tool_use")

    def test_none(self, server: Running) -> None:
        answer = self.ask(server, messages=self.user("No tools"), tool_choice={"type": "none"})
        assert answer.content[0].text == "None." and answer.stop_reason == "end_turn"

    def test_a_choice_of_an_unknown_tool_is_refused(self, server: Running) -> None:
        with pytest.raises(anthropic.BadRequestError):
            self.ask(server, tool_choice={"type": "tool", "name": "nothing"})

    def test_thinking(self, server: Running) -> None:
        asked: Any = {"messages": self.user("ponder"), "thinking": {"type": "enabled", "budget_tokens": 1024}}
        answer = self.ask(server, **asked)
        assert [block.type for block in answer.content] == ["thinking", "text", "tool_use", "tool_use"]
        assert answer.content[0].thinking.strip() == "Two cities."
        assert 0 < answer.usage.output_tokens_details.thinking_tokens < answer.usage.output_tokens
        with anthropic_client(server).messages.stream(model=MODEL, max_tokens=300, tools=self.tools, **asked) as stream:
            streamed: Any = stream.get_final_message()
        assert streamed.content[0].thinking == answer.content[0].thinking
        results = [
            {"type": "tool_result", "tool_use_id": call.id, "content": text}
            for call, text in zip(answer.content[2:], ("Rain", "Sun"), strict=True)
        ]
        turns = [*self.user("ponder"), {"role": "assistant", "content": answer.content}, *self.user(results)]
        assert self.ask(server, **{**asked, "messages": turns}).content[-1].text == "Rain there, sun here."

    def test_a_call_that_is_cut_off_is_left_out(self, server: Running) -> None:
        answer = self.ask(server, max_tokens=40)
        assert answer.stop_reason == "max_tokens" and [block.type for block in answer.content] == ["text"]
