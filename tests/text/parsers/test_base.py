"""Parts, and what they fold to."""

from __future__ import annotations

from llmserve.text.parsers.base import (
    OutputParser,
    ParsedCall,
    ParsedOutput,
    ReasoningPart,
    TextPart,
    ToolCallArguments,
    ToolCallBegin,
    fold_parts,
)


def test_plain_text_is_text() -> None:
    parser = OutputParser()
    assert [*parser.feed("a"), *parser.feed(""), *parser.feed("b"), *parser.finish()] == [TextPart("a"), TextPart("b")]


def test_parts_fold_to_an_answer() -> None:
    parts = [
        ReasoningPart("hm"),
        TextPart("I "),
        ToolCallBegin(0, "call_a", "f"),
        ToolCallArguments(0, '{"a"'),
        ToolCallBegin(1, "call_b", "g"),
        ToolCallArguments(0, ": 1}"),
        ToolCallArguments(1, "{}"),
        TextPart("see"),
    ]
    calls = (ParsedCall("call_a", "f", '{"a": 1}'), ParsedCall("call_b", "g", "{}"))
    assert fold_parts(parts) == ParsedOutput("I see", "hm", calls)
    assert fold_parts([]) == ParsedOutput()
