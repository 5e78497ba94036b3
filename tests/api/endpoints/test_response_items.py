"""Parts to items and events: their order, and that items and events say the same."""

from __future__ import annotations

from typing import Any

import pytest

from llmserve.api.endpoints.responses.items import OutputItems
from llmserve.text.parsers.base import Part, ReasoningPart, TextPart, ToolCallArguments, ToolCallBegin

PARTS: list[Part] = [
    ReasoningPart("hm"),
    ReasoningPart(" so"),
    TextPart("See"),
    TextPart("."),
    ToolCallBegin(0, "c1", "f"),
    ToolCallArguments(0, '{"x":'),
    ToolCallArguments(0, "1}"),
    ToolCallBegin(1, "c2", "g"),
    ToolCallArguments(1, "{}"),
    TextPart("Done"),
]
TEXT = ["content_part.added", "output_text.delta", "output_text.done", "content_part.done"]
CALL = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
THOUGHT = ["content_part.added", *["reasoning_text.delta"] * 2, "reasoning_text.done", "content_part.done"]
ORDER = [
    *("output_item.added", *THOUGHT, "output_item.done"),
    *("output_item.added", TEXT[0], *TEXT[1:2] * 2, *TEXT[2:], "output_item.done"),
    *(CALL[0], *CALL[1:2] * 2, *CALL[2:]),
    *CALL,
    *("output_item.added", *TEXT, "output_item.done"),
]


def run(
    parts: list[Part], status: str = "completed", summarize: bool = False
) -> tuple[OutputItems, list[dict[str, Any]]]:
    items = OutputItems(summarize)
    events = [event for part in parts for event in items.take([part], [])]
    return items, events + list(items.close(status))


def test_the_order_of_events() -> None:
    items, events = run(PARTS)
    assert [event["type"].removeprefix("response.") for event in events] == ORDER
    assert [item["type"] for item in items.output] == [
        *("reasoning", "message", "function_call", "function_call", "message"),
    ]
    assert all(item["status"] == "completed" for item in items.output)
    assert [e["output_index"] for e in events] == sorted(e["output_index"] for e in events)


def test_events_add_up_to_the_items() -> None:
    items, events = run(PARTS)
    built: list[dict[str, Any]] = []
    for event in events:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["item"]["status"] == "in_progress" and not event["item"].get("content")
            built.append({**event["item"], "content": []})
        elif kind == "content_part.added":
            built[-1]["content"].append(event["part"])
        elif kind in ("output_text.delta", "reasoning_text.delta"):
            built[-1]["content"][0]["text"] += event["delta"]
        elif kind == "function_call_arguments.delta":
            built[-1]["arguments"] += event["delta"]
        elif kind == "output_item.done":
            assert event["item"] == items.output[event["output_index"]]
            for name in ("content", "arguments"):
                assert built[-1].get(name) == event["item"].get(name) or not built[-1].get(name)
        if "item_id" in event:
            assert event["item_id"] == built[-1]["id"]
    assert [item.get("call_id") for item in built] == [None, None, "c1", "c2", None]


def test_reasoning_is_its_own_summary_where_one_is_asked_for() -> None:
    items, events = run(PARTS[:3], summarize=True)
    assert items.output[0]["summary"] == [{"type": "summary_text", "text": "hm so"}]
    summary = [event["type"] for event in events if "summary" in event["type"]]
    assert summary == [
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.done",
        "response.reasoning_summary_part.done",
    ]


@pytest.mark.parametrize("count", range(1, len(PARTS) + 1))
def test_what_is_cut_off_is_incomplete_and_only_that(count: int) -> None:
    items, events = run(PARTS[:count], "incomplete")
    assert [item["status"] for item in items.output] == ["completed"] * (len(items.output) - 1) + ["incomplete"]
    assert events[-1]["type"] == "response.output_item.done"


def test_nothing_said_is_no_item() -> None:
    items, events = run([])
    assert items.output == [] and events == []


def test_log_probabilities_go_with_the_text() -> None:
    items = OutputItems(False)
    list(items.take([TextPart("a")], [{"token": "a"}]))
    events = [*items.take([TextPart("b")], [{"token": "b"}]), *items.close("completed")]
    assert events[0]["logprobs"] == [{"token": "b"}]
    assert items.output[0]["content"][0]["logprobs"] == [{"token": "a"}, {"token": "b"}]
