"""Bodies of /v1/responses: the chats that they become, and those that are refused. No server here."""

from __future__ import annotations

from typing import Any

import pytest

from llmserve.api.endpoints.responses.request import ResponsesRequest
from llmserve.errors import RequestError

TOOL = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
KNOWN = {"msg_1": {"id": "msg_1", "type": "message", "role": "user", "content": "known"}}


def chat(given: Any = "Hi", **fields: Any) -> Any:
    body = ResponsesRequest.model_validate({"input": given, **fields})
    return body.as_chat(body.items(KNOWN.get))


def messages(given: Any, **fields: Any) -> list[dict[str, Any]]:
    return [message.model_dump(exclude_unset=True) for message in chat(given, **fields).messages]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def test_a_string_and_easy_messages() -> None:
    assert messages("Hi") == messages([user("Hi")]) == messages([{"type": "message", **user("Hi")}]) == [user("Hi")]
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    assert messages([{"role": "user", "content": parts}])[0]["content"] == [
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b"},
    ]
    assert [m["role"] for m in messages([{"role": "developer", "content": "d"}, user("a"), user("b")])] == [
        "developer",
        "user",
        "user",
    ]


def test_instructions_come_first() -> None:
    assert messages("Hi", instructions="Be.") == [{"role": "system", "content": "Be."}, user("Hi")]


def test_one_turn_of_the_model_is_one_message() -> None:
    items = [
        user("Q"),
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "id": "msg_2", "content": [{"type": "output_text", "text": "See."}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"x":1}'},
        {"type": "function_call", "call_id": "c2", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "7"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "8"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "short"}]},
        {"type": "custom_tool_call", "call_id": "c3", "name": "g", "input": "text"},
        {"type": "custom_tool_call_output", "call_id": "c3", "output": ""},
        {"id": "msg_1"},
        {"type": "item_reference", "id": "msg_1"},
    ]
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert messages(items) == [
        user("Q"),
        {
            "role": "assistant",
            "content": "See.",
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
                {"id": "c2", **call},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "7"},
        {"role": "tool", "tool_call_id": "c2", "content": "8"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "short",
            "tool_calls": [
                {"id": "c3", "type": "function", "function": {"name": "g", "arguments": '{"input": "text"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "c3", "content": ""},
        user("known"),
        user("known"),
    ]


def test_tools_of_other_kinds_are_skipped() -> None:
    others = [{"type": "web_search"}, {"type": "custom", "name": "apply_patch"}, {"type": "local_shell"}]
    function = {name: value for name, value in TOOL.items() if name != "type"}
    assert chat(tools=[*others, TOOL]).tools == [{"type": "function", "function": function}]
    assert chat(tools=others, tool_choice="auto").tools is None


def test_tool_choices() -> None:
    named = {"type": "function", "function": {"name": "f"}}
    for given in ("auto", "none", "required"):
        assert chat(tools=[TOOL], tool_choice=given).tool_choice == given
    assert chat(tools=[TOOL], tool_choice={"type": "function", "name": "f"}).tool_choice == named
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}
    wanted = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
    assert chat(tools=[TOOL], tool_choice=allowed).tool_choice == wanted


def test_formats() -> None:
    schema = {"type": "object", "properties": {}}
    given = {"type": "json_schema", "name": "n", "strict": True, "schema": schema}
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}
    assert chat(text={"format": given, "verbosity": "low"}).response_format == wanted
    assert chat(text={"format": {"type": "json_object"}}).response_format == {"type": "json_object"}
    assert chat(text={"verbosity": "low"}).response_format is None


def test_sampling() -> None:
    body = chat(max_output_tokens=5, temperature=0.5, top_p=0.9, top_logprobs=2, reasoning={"effort": "low"}, seed=3)
    assert (body.max_completion_tokens, body.temperature, body.top_p) == (5, 0.5, 0.9)
    assert (body.logprobs, body.top_logprobs, body.reasoning_effort, body.seed) == (True, 2, "low", 3)
    assert chat(include=["message.output_text.logprobs"]).logprobs is True
    assert chat(include=["reasoning.encrypted_content"]).logprobs is False


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "web_search_call", "id": "w"}]}, "input"),
        ({"input": [{"type": "item_reference", "id": "gone"}]}, "input"),
        ({"input": [{}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input"),
        ({"input": [{"role": "user", "content": ["text"]}]}, "input"),
        ({"input": [{"role": "user", "content": 5}]}, "input"),
        ({"input": [{"role": "user", "content": "a"}] * 5000}, "input"),
        ({"input": [{"role": "robot", "content": "a"}]}, "messages.0.role"),
        ({"input": "a", "background": True}, "background"),
        ({"input": "a", "conversation": "c"}, "conversation"),
        ({"input": "a", "prompt": {"id": "p"}}, "prompt"),
        ({"input": "a", "tools": [TOOL], "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"input": "a", "text": {"format": 5}}, "text.format"),
    ],
)
def test_refusals(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        chat(**{"given": fields.pop("input"), **fields})
    assert caught.value.param and caught.value.param.startswith(param)


def test_no_effort_is_no_thinking() -> None:
    assert chat(reasoning={"effort": "none"}).template_variables()["enable_thinking"] is False
    for given in ({"effort": "low"}, {}):
        assert "enable_thinking" not in chat(reasoning=given).template_variables()
    asked = chat(reasoning={"effort": "none"}, chat_template_kwargs={"enable_thinking": True})
    assert asked.template_variables()["enable_thinking"] is True
