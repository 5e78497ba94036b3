"""Reasoning, split off before anything else is looked for."""

from __future__ import annotations

import pytest

from llmserve.text.parsers.base import OutputParser, ParsedOutput, fold_parts
from llmserve.text.parsers.reasoning import TAGS, ReasoningParser, tags_of

from .test_calls import CALL, calls, parser, parts


def parse(text: str, opened: bool = False) -> ParsedOutput:
    return fold_parts(parts(ReasoningParser(TAGS[0], OutputParser(), opened=opened), text))


@pytest.mark.parametrize(
    ("text", "opened", "reasoning", "said"),
    [
        ("<think>\nhm, <b>\n</think>\n\nYes.", False, "hm, <b>", "Yes."),
        ("\n<think>hm</think>Yes. ", False, "hm", "Yes. "),
        ("hm\n\nso\n</think>Yes.", True, "hm\n\nso", "Yes."),
        ("<think>\n\n</think>\n\nYes.", False, "", "Yes."),
        (" Yes <think>no</think>", False, "", " Yes <think>no</think>"),  # it is at the beginning, or it is text
        ("<thi", False, "", "<thi"),
        ("<think>hm </th", False, "hm </th", ""),
        ("hm ", True, "hm", ""),
        ("", True, "", ""),
    ],
)
def test_reasoning_is_split_off(text: str, opened: bool, reasoning: str, said: str) -> None:
    assert parse(text, opened) == ParsedOutput(said, reasoning)


def test_it_says_whether_there_may_be_more() -> None:
    parser = ReasoningParser(TAGS[0], OutputParser(), opened=False)
    assert (parser.may_reason, parser.is_reasoning) == (True, False)
    parser.feed("<think>hm")
    assert (parser.may_reason, parser.is_reasoning) == (True, True)
    parser.feed("</think>")
    assert not parser.is_reasoning
    parser.feed("x")
    assert (parser.may_reason, parser.is_reasoning) == (False, False)


def test_calls_within_reasoning_are_thoughts() -> None:
    tagged = f"<tool_call>{CALL}</tool_call>"
    output = fold_parts(parts(ReasoningParser(TAGS[0], parser("hermes"), opened=True), f"{tagged}</think>{tagged}"))
    assert output.reasoning == tagged and len(calls(output)) == 1


def test_tags_are_found_from_the_template() -> None:
    assert tags_of("{{ '<think>\\n\\n</think>' }}") is TAGS[0]
    assert tags_of("", ["[/THINK]"]) is TAGS[1]
    assert tags_of("{{ messages }}") is None
