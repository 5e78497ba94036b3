"""Requests as coding agents send them, field by field: nothing that they always send may be refused.

Codex CLI speaks /v1/responses, with tools of several kinds, and keeps the conversation itself. Claude Code speaks
/v1/messages, with blocks that carry caching hints, and counts tokens first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from .server import Executor, Running, serve
from .test_messages import events_of as message_events
from .test_responses import events_of as response_events


def script(prompt: str) -> str:
    if "<|im_start|>tool" in prompt:
        return "There are two files."
    call = '{"name": "shell", "arguments": {"command": ["ls"]}}'
    return f"<think>\nI list them.\n</think>\n\n<tool_call>\n{call}\n</tool_call>"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serve(executor=Executor(script=script, max_model_len=4096, num_pages=2048)) as running:
        yield running


SHELL = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "properties": {
        "command": {"type": "array", "items": {"type": "string"}, "description": "The command to run"},
        "timeout_ms": {"type": "number", "description": "Milliseconds"},
    },
    "required": ["command"],
    "additionalProperties": False,
}


def codex(items: list[dict[str, Any]]) -> dict[str, Any]:
    def message(role: str, text: str) -> dict[str, Any]:
        return {"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]}

    return {
        "model": "tiny",
        "instructions": "You are a coding agent.",
        "input": [
            message("developer", "<permissions>read only</permissions>"),
            message("user", "<environment_context><cwd>/src</cwd></environment_context>"),
            message("user", "What is here?"),
            *items,
        ],
        "tools": [
            {"type": "function", "name": "shell", "description": "Runs it.", "strict": False, "parameters": SHELL},
            {
                "type": "custom",
                "name": "apply_patch",
                "format": {"type": "grammar", "syntax": "lark", "definition": "s"},
            },
            {"type": "local_shell"},
            {"type": "web_search", "external_web_access": True},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "00000000-0000-0000-0000-000000000000",
        "text": {"verbosity": "medium"},
        "client_metadata": {"a": "b"},
    }


def test_codex(server: Running) -> None:
    headers = {"accept": "text/event-stream", "originator": "codex", "session_id": "s", "openai-beta": "responses=x"}
    events = response_events(server.post("/v1/responses", codex([]), headers=headers))
    assert events[-1]["type"] == "response.completed"
    items = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert [item["type"] for item in items] == ["reasoning", "function_call"]
    assert json.loads(items[1]["arguments"]) == {"command": ["ls"]}
    output = {
        "type": "function_call_output",
        "call_id": items[1]["call_id"],
        "output": '{"output":"a b","metadata":{}}',
    }
    for item in items:
        item.pop("id"), item.pop("status")  # what is not stored is sent back without them
    events = response_events(server.post("/v1/responses", codex([*items, output]), headers=headers))
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "There are two files."
    assert server.get(f"/v1/responses/{events[-1]['response']['id']}").status_code == 404


def claude_code(turns: list[dict[str, Any]]) -> dict[str, Any]:
    hint = {"cache_control": {"type": "ephemeral"}}
    return {
        "model": "claude-sonnet-4-5-20250929",
        "max_tokens": 32000,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "<system-reminder>Be careful.</system-reminder>"},
                    {"type": "text", "text": "What is here?", **hint},
                ],
            },
            *turns,
        ],
        "system": [
            {"type": "text", "text": "You are a coding agent.", **hint},
            {"type": "text", "text": "The working directory is /src.", **hint},
        ],
        "tools": [
            {"name": "shell", "description": "Runs it.", "input_schema": SHELL},
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
        ],
        "metadata": {"user_id": "user_0_session_0"},
        "thinking": {"type": "enabled", "budget_tokens": 31999},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "stream": True,
    }


def test_claude_code(server: Running) -> None:
    headers = {
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14",
        "x-app": "cli",
        "authorization": "Bearer none",
    }
    body = claude_code([])
    count = {name: value for name, value in body.items() if name not in ("max_tokens", "stream", "metadata")}
    counted = server.post("/v1/messages/count_tokens?beta=true", count, headers=headers).json()["input_tokens"]
    events = message_events(server.post("/v1/messages?beta=true", body, headers=headers))
    usage = events[0]["message"]["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == counted
    starts = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert [block["type"] for block in starts] == ["thinking", "tool_use"]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    turns: list[dict[str, Any]] = [
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "I list them.", "signature": ""},
                {"type": "tool_use", "id": starts[1]["id"], "name": "shell", "input": {"command": ["ls"]}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": starts[1]["id"], "content": "a b", "is_error": False},
                {"type": "text", "text": "<system-reminder>Go on.</system-reminder>"},
            ],
        },
    ]
    whole = server.post("/v1/messages?beta=true", {**claude_code(turns), "stream": False}, headers=headers).json()
    assert whole["content"][-1]["text"] == "There are two files." and whole["stop_reason"] == "end_turn"
