"""Bodies that are right but for one place: whatever stands there, the answer is an answer, or a refusal in words."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ..text import templates
from .server import MODEL, Executor, Running, serve
from .test_agents import SHELL, claude_code, codex

CALLED = {
    "type": "function_call",
    "call_id": "c",
    "name": "shell",
    "arguments": "{}",
    "id": "fc",
    "status": "completed",
}
ITEMS = [
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "a"}], "content": [{"text": "b"}]},
    {"role": "assistant", "content": [{"type": "output_text", "text": "c", "annotations": []}]},
    CALLED,
    {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "d"}]},
    {"type": "custom_tool_call", "call_id": "e", "name": "p", "input": "f"},
    {"type": "custom_tool_call_output", "call_id": "e", "output": "g"},
    {"role": "user", "content": "h"},
]
BLOCKS = [
    {"type": "thinking", "thinking": "a", "signature": ""},
    {"type": "text", "text": "b"},
    {"type": "tool_use", "id": "t", "name": "shell", "input": {"command": ["ls"]}},
]
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "c"}], "is_error": False}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
FORMAT = {"type": "json_schema", "name": "n", "strict": True, "schema": SCHEMA}
CHOICE = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "shell"}]}
SHORT: dict[str, Any] = {"temperature": 0.5, "top_p": 0.9}

BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/responses": [
        {**codex(ITEMS), "max_output_tokens": 2, "store": True, "tool_choice": CHOICE, **SHORT},
        {"input": "a", "text": {"format": FORMAT}, "max_output_tokens": 2, "top_logprobs": 1, "metadata": {"a": "b"}},
        {"input": [{"id": "x"}, CALLED], "previous_response_id": "resp_x", "max_output_tokens": 1},
    ],
    "/v1/responses/input_tokens": [codex(ITEMS)],
    "/v1/messages": [
        {
            **claude_code([{"role": "assistant", "content": BLOCKS}, {"role": "user", "content": [RESULT]}]),
            "max_tokens": 2,
            "stop_sequences": ["x"],
            "tool_choice": {"type": "auto"},
            "top_k": 3,
            **SHORT,
        },
        {
            "max_tokens": 2,
            "messages": [{"role": "user", "content": "a"}],
            "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
        },
    ],
    "/v1/messages/count_tokens": [
        claude_code([{"role": "assistant", "content": BLOCKS}, {"role": "user", "content": [RESULT]}])
    ],
    "/v1/embeddings": [{"input": ["a", "b"], "dimensions": 3, "encoding_format": "base64", "pooling": "last"}],
    "/tokenize": [
        {"prompt": "a", "return_token_strs": True, "add_special_tokens": False},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "tools": [templates.TOOL]},
    ],
    "/detokenize": [{"tokens": [1, 2, 3]}],
    "/v1/chat/completions": [
        {
            "messages": [{"role": "user", "content": "a"}],
            "tools": [{"type": "function", "function": {"name": "shell", "parameters": SHELL}}],
            "max_tokens": 2,
            "continue_final_message": False,
        }
    ],
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 300) | st.floats(allow_nan=False, width=32) | st.text(max_size=5),
    lambda its: st.lists(its, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "name", "id"]), its),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serve(executor=Executor(max_model_len=4096, num_pages=2048)) as running:
        yield running


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything in a JSON value."""
    if path:
        yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in children:
        yield from places(child, (*path, name))


def replaced(body: dict[str, Any], path: tuple[Any, ...], value: Any, remove: bool) -> dict[str, Any]:
    body = copy.deepcopy(body)
    at: Any = body
    for name in path[:-1]:
        at = at[name]
    if remove:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return body


@pytest.mark.parametrize("path", BODIES)
@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_wrong_place_is_no_fault_of_ours(server: Running, path: str, data: st.DataObject) -> None:
    body = data.draw(st.sampled_from(BODIES[path]))
    place = data.draw(st.sampled_from(list(places(body))))
    body = replaced(body, place, data.draw(JSON), data.draw(st.booleans()))
    response = server.post(path, content=json.dumps({**body, "model": MODEL}))
    assert response.status_code in (200, 400, 404), (body, response.text)
    if response.status_code != 200:
        assert response.json()["error"]["message"]
    elif body.get("stream") is True:
        assert '"type":"error"' not in response.text, body


@pytest.mark.parametrize("path", BODIES)
def test_the_bodies_are_right_but_for_that(server: Running, path: str) -> None:
    """Or the mutations would test nothing. One names what an empty store lacks."""
    for body in BODIES[path]:
        response = server.post(path, {**body, "model": "claude-x" if "messages" in path else MODEL})
        if "previous_response_id" in body:
            assert response.status_code == 400 and "there is no item 'x'" in response.text
        else:
            assert response.status_code == 200, response.text
