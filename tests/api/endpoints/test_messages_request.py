"""Bodies of /v1/messages: the chats that they become, and those that are refused. No server here."""

from __future__ import annotations

from typing import Any

import pytest

from llmserve.api.endpoints.messages.request import MessagesRequest
from llmserve.errors import RequestError

USER = {"role": "user", "content": "Hi"}
TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object", "properties": {"x": {"type": "integer"}}}}


def chat(**fields: Any) -> Any:
    body = {"model": "m", "max_tokens": 5, "messages": [USER], **fields}
    return MessagesRequest.model_validate(body).as_chat()


def messages(**fields: Any) -> list[dict[str, Any]]:
    return [message.model_dump(exclude_unset=True) for message in chat(**fields).messages]


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def test_texts_and_blocks_of_one_text_are_strings() -> None:
    assert (
        messages() == messages(messages=[{"role": "user", "content": [{**text("Hi"), "cache_control": {}}]}]) == [USER]
    )


def test_system_comes_first_as_a_string_or_blocks() -> None:
    assert messages(system="Be.")[0] == {"role": "system", "content": "Be."}
    parts = [text("a"), text("b")]
    assert messages(system=[{**part, "cache_control": {"type": "ephemeral"}} for part in parts])[0]["content"] == parts
    assert messages(system=[])[0] == USER


def test_neighbours_of_one_role_are_one_message() -> None:
    turns = [USER, {"role": "user", "content": "Ho"}, {"role": "assistant", "content": "A"}]
    turns += [{"role": "assistant", "content": "B"}, USER]
    assert messages(messages=turns) == [
        {"role": "user", "content": [text("Hi"), text("Ho")]},
        {"role": "assistant", "content": [text("A"), text("B")]},
        USER,
    ]


def test_a_round_of_tools() -> None:
    turns = [
        USER,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "redacted_thinking", "data": "x"},
                text("Let me see."),
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}},
                {"type": "tool_use", "id": "t2", "name": "f", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "7"},
                {"type": "tool_result", "tool_use_id": "t2", "content": [text("8"), text("9")], "is_error": True},
                {"type": "tool_result", "tool_use_id": "t3"},
                text("So?"),
            ],
        },
    ]
    assert messages(messages=turns) == [
        USER,
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
                {"id": "t2", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "7"},
        {"role": "tool", "tool_call_id": "t2", "content": [text("8"), text("9")]},
        {"role": "tool", "tool_call_id": "t3", "content": ""},
        {"role": "user", "content": "So?"},
    ]


def test_tools_and_choices() -> None:
    body = chat(tools=[TOOL, {"type": "web_search_20250305", "name": "web_search"}, {**TOOL, "type": "custom"}])
    function = {"name": "f", "description": "d", "parameters": TOOL["input_schema"]}
    assert body.tools == [{"type": "function", "function": function}] * 2 and body.tool_choice is None
    named = {"type": "function", "function": {"name": "f"}}
    choices = [("auto", "auto"), ("any", "required"), ("none", "none"), ("tool", named)]
    for kind, expected in choices:
        assert chat(tools=[TOOL], tool_choice={"type": kind, "name": "f"}).tool_choice == expected
    one = chat(tools=[TOOL], tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert one.model_dump()["parallel_tool_calls"] is False
    assert chat(tools=[{"type": "web_search_20250305", "name": "w"}], tool_choice={"type": "auto"}).tools is None


def test_sampling_and_output() -> None:
    body = chat(stop_sequences=["x"], temperature=0.5, top_p=0.9, top_k=3, stream=True)
    assert (body.stop, body.temperature, body.top_p, body.top_k, body.stream) == (["x"], 0.5, 0.9, 3, True)
    assert body.max_tokens == 5 and body.response_format is None
    schema = {"type": "object", "properties": {}}
    wanted = {"type": "json_schema", "json_schema": {"name": "output", "schema": schema, "strict": True}}
    asked = {"type": "json_schema", "schema": schema}
    assert chat(output_config={"format": asked, "effort": "low"}).response_format == wanted
    assert chat(output_config={"effort": "low"}).reasoning_effort == "low"
    assert chat(output_format=asked).response_format == wanted


def test_thinking_is_off_unless_it_is_asked_for() -> None:
    kinds = {None: False, "disabled": False, "enabled": True, "adaptive": True}
    for kind, expected in kinds.items():
        fields: dict[str, Any] = {} if kind is None else {"thinking": {"type": kind, "budget_tokens": 1024}}
        assert chat(**fields).template_variables()["enable_thinking"] is expected


def test_a_text_document_is_text() -> None:
    document = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "words"}}
    assert messages(messages=[{"role": "user", "content": [document, text("?")]}])[0]["content"][0] == text("words")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, r"messages\[0\].content\[0\]"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "a"}]}]}, "tool_use"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": 5}]}]}, "must be a string or"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": ["a"]}]}]}, "must be an object"),
        ({"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "url"}}]}]}, "document"),
        ({"system": [{"type": "image"}]}, "system"),
        ({"tools": [TOOL], "tool_choice": {"type": "some"}}, "tool_choice of type 'some'"),
        ({"tools": [TOOL], "tool_choice": {"type": []}}, "tool_choice of type"),
        ({"output_format": {"type": "xml"}}, "only json_schema"),
        ({"output_config": {"effort": 5}}, "reasoning_effort"),
    ],
)
def test_refusals(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        chat(**fields)
