"""Calls in every format: as models write them, broken in every way, and cut into pieces anywhere."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.errors import ConfigError
from llmserve.text.parsers.base import OutputParser, ParsedOutput, Part, ToolCallArguments, ToolCallBegin, fold_parts
from llmserve.text.parsers.formats import CALL_FORMATS, format_named, format_of
from llmserve.text.parsers.hermes import FORMAT as HERMES
from llmserve.text.parsers.reasoning import TAGS, ReasoningParser

NAMES = frozenset({"f", "weather", "ns.get-it"})


def parser(form: str, **options: Any) -> OutputParser:
    ids = count()
    return CALL_FORMATS[form].parser(NAMES, new_id=lambda: f"id{next(ids)}", **options)


def parts(parser: OutputParser, pieces: Iterable[str]) -> list[Part]:
    return [*(part for piece in pieces for part in parser.feed(piece)), *parser.finish()]


def parse(form: str, text: str, **options: Any) -> ParsedOutput:
    """The text's answer, checked to be the same by the character and in one piece."""
    whole = fold_parts(parts(parser(form, **options), [text]))
    assert fold_parts(parts(parser(form, **options), text)) == whole
    return whole


def calls(output: ParsedOutput) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in output.calls]


CALL = '{"name": "f", "arguments": {"a": [1, {"b": "}\\n\\"x"}]}}'
ARGUMENTS = '{"a": [1, {"b": "}\\n\\"x"}]}'
LLAMA = CALL.replace("arguments", "parameters")
OTHER = '{"name": "weather", "arguments": {}}'
BOTH = [("f", ARGUMENTS), ("weather", "{}")]


@pytest.mark.parametrize(
    ("form", "text", "expected", "said"),
    [
        ("hermes", f"<tool_call>\n{CALL}\n</tool_call>", BOTH[:1], ""),
        ("hermes", f"See:\n\n<tool_call>{CALL}</tool_call>\n<tool_call>{OTHER}</tool_call>\n", BOTH, "See:"),
        ("hermes", f"<tool_call>{CALL}</tool_call>\nDone.", BOTH[:1], "Done."),
        ("hermes", f"<tool_call>{CALL}", BOTH[:1], ""),  # the end of the text closes it as well
        ("hermes", f"<tool_call>{CALL}}}</tool_call>", BOTH[:1], ""),  # a brace too many, or too few
        ("hermes", f"<tool_call>{CALL[:-1]}</tool_call> x", BOTH[:1], "x"),
        ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', [("f", '{"a": 1}')], ""),
        ("hermes", '<tool_call>{"name": "f"}</tool_call>', [("f", "{}")], ""),
        ("hermes", '<tool_call>{"name": "f", "arguments": null}</tool_call>', [("f", "{}")], ""),
        ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', [("f", '{"a": 1}')], ""),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "1\n2"}}</tool_call>', [("f", '{"a": "1\\n2"}')], ""),
        ("hermes", '<tool_call>{"type": "x", "name": "ns.get-it", "id": 7}</tool_call>', [("ns.get-it", "{}")], ""),
        ("llama3_json", LLAMA, BOTH[:1], ""),
        ("llama3_json", f"\n{LLAMA}; {OTHER}", BOTH, ""),
        ("llama3_json", f"<|python_tag|>{LLAMA}", BOTH[:1], ""),
        ("llama3_json", f"So: <|python_tag|>{LLAMA};{OTHER};", BOTH, "So:"),
        ("mistral", f"[TOOL_CALLS][{CALL}]", BOTH[:1], ""),
        ("mistral", f"Hm [TOOL_CALLS] [{CALL}, {OTHER}]", BOTH, "Hm"),
        ("mistral", f"[TOOL_CALLS]f[ARGS]{ARGUMENTS}[TOOL_CALLS]weather[CALL_ID]abcdefghi[ARGS]{{}}", BOTH, ""),
        ("mistral", f"[TOOL_CALLS]f{ARGUMENTS}", BOTH[:1], ""),
        ("pythonic", '[f(a=[1, {"b": "}\\n\\"x"}]), weather()]', BOTH, ""),
        ("pythonic", "<|python_start|>[weather()]<|python_end|>", BOTH[1:], ""),
        ("pythonic", f"[{CALL}, {OTHER}]", BOTH, ""),
        ("json", CALL, BOTH[:1], ""),
        ("json", f" [{LLAMA},\n{OTHER}]", BOTH, ""),
        ("json", f"```json\n{CALL}\n```\n", BOTH[:1], ""),
        ("json", f"```json\n[{CALL}, {OTHER}]\n```\nThere.", BOTH, "There."),
    ],
)
def test_calls_as_models_write_them(form: str, text: str, expected: list[tuple[str, str]], said: str) -> None:
    output = parse(form, text)
    assert calls(output) == expected and output.text == said
    assert [call.call_id for call in output.calls] == [f"id{i}" for i in range(len(expected))]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("hermes", "<tool_call>not json</tool_call> and <tool_call>{</tool_call>"),
        ("hermes", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>\n'),
        ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": "x"}</tool_call>'),
        ("hermes", '<tool_call>{"name": 3, "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f"'),
        ("hermes", '<tool_call>{"arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"function": "f", "arguments": {}}</tool_call>'),
        ("hermes", "a < b </tool_call> <tool_cal"),
        ("hermes", "  text \n\n"),
        ("llama3_json", '{"city": "Paris", "name": "f"}'),
        ("llama3_json", "Call " + LLAMA),
        ("llama3_json", "<|python_tag|>print(1)"),
        ("mistral", "[TOOL_CALLS]"),
        ("mistral", "[TOOL_CALLS][1, 2]"),
        ("mistral", "[TOOL_CALLS]unknown[ARGS]{}"),
        ("mistral", "[TOOL_CALLS]f[OOPS]{}"),
        ("mistral", "[INST] [TOOL"),
        ("pythonic", "[1, 2, 3] is a list"),
        ("pythonic", "[f(1)]"),
        ("pythonic", "[f(a=Paris)]"),
        ("pythonic", "[g(a=1)]"),
        ("pythonic", "f(a=1)"),
        ("json", "``` \nprint()```"),
        ("json", '[{"name": "unknown"}]'),
        ("json", '{"a": tru'),
    ],
)
def test_what_is_no_call_is_text_as_it_was_written(form: str, text: str) -> None:
    assert parse(form, text) == ParsedOutput(text)


@pytest.mark.parametrize(
    ("form", "text", "arguments", "said"),
    [
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": tru}}</tool_call>Bye', '{"a": tru}}', "Bye"),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "x', '{"a": "x', ""),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "\\d"}}</tool_call>', '{"a": "\\d"}}', ""),
        ("llama3_json", '{"name": "f", "parameters": {"a": 1,}}', '{"a": 1,}}', ""),
        ("mistral", "[TOOL_CALLS]f[ARGS]{'a'}", "{'a'}", ""),
        ("pythonic", "[f(a=1, b=Paris)]", '{"a": 1, "b": Paris)]', ""),
    ],
)
def test_arguments_that_go_wrong_midway_are_passed_on(form: str, text: str, arguments: str, said: str) -> None:
    output = parse(form, text)
    assert calls(output) == [("f", arguments)] and output.text == said


def test_arguments_are_streamed() -> None:
    stream = parser("hermes")
    assert stream.feed('Hi <tool_call>{"name": "f", "argu') == parts(parser("hermes"), ["Hi"])
    assert stream.feed('ments": {"a"') == [ToolCallBegin(0, "id0", "f"), ToolCallArguments(0, '{"a"')]
    assert stream.feed(': "Zü') == [ToolCallArguments(0, ': "Zü')]
    assert stream.feed('rich"}') == [ToolCallArguments(0, 'rich"}')]
    assert stream.feed("}</tool_") == []
    assert stream.feed("call>\n") == [] and stream.finish() == []
    python = parser("pythonic")
    assert python.feed('[f(a="Zü')[1:] == [ToolCallArguments(0, '{"a": "Zü')]


def test_text_is_held_back_only_while_it_may_be_a_tag() -> None:
    stream = parser("hermes")
    assert [fold_parts(stream.feed(piece)).text for piece in ("a b", " <", "b ", "<tool", "_box>")] == [
        *("a b", "", " <b", "", " <tool_box>")
    ]


@pytest.mark.parametrize("form", CALL_FORMATS)
def test_one_call_only_if_they_are_not_to_be_parallel(form: str) -> None:
    text = {
        "hermes": f"<tool_call>{CALL}</tool_call><tool_call>{OTHER}</tool_call>",
        "llama3_json": f"{LLAMA}; {OTHER}",
        "mistral": f"[TOOL_CALLS][{CALL}, {OTHER}]",
        "pythonic": '[f(a=[1, {"b": "}\\n\\"x"}]), weather()]',
        "json": f"[{CALL}, {OTHER}]",
    }[form]
    assert calls(parse(form, text)) == BOTH
    assert calls(parse(form, text, parallel=False)) == BOTH[:1]


def test_mistrals_ids_have_nine_letters_and_digits() -> None:
    output = fold_parts(parts(CALL_FORMATS["mistral"].parser(NAMES), [f"[TOOL_CALLS][{CALL}]"]))
    assert len(output.calls[0].call_id) == 9 and output.calls[0].call_id.isalnum()
    output = fold_parts(parts(HERMES.parser(NAMES), [f"<tool_call>{CALL}</tool_call>"]))
    assert output.calls[0].call_id.startswith("call_")


@pytest.mark.parametrize("form", CALL_FORMATS)
@pytest.mark.parametrize(
    "text",
    [
        *(" " * 50_000, "<tool_call>" * 5_000, "<" * 50_000, "[" * 50_000, '{"id": "' + "x" * 50_000),
        '<tool_call>{"name": "f", "arguments": {"a": ' + "[" * 50_000,
        '[TOOL_CALLS][{"arguments": {"a": "' + "<" * 50_000,
        '{"name": "f", "parameters": {x' + "<" * 50_000,
        "[f(a='" + "\\'" * 25_000,
        "<think>" + " " * 50_000,
    ],
    ids=lambda text: text[:12].strip(),
)
def test_work_grows_with_the_text_and_no_faster(form: str, text: str) -> None:
    stream = ReasoningParser(TAGS[0], parser(form), opened=False)
    started = time.process_time()
    parts(stream, (text[at : at + 5] for at in range(0, len(text), 5)))
    assert time.process_time() - started < 3, "fifty thousand characters take a fraction of a second"


# --- properties

FRAGMENTS = (
    *(
        "<tool_call>",
        "</tool_call>",
        "<tool",
        "_call>",
        "<|python_tag|>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "[CALL_ID]",
        "[",
        "]",
    ),
    *("<|python_start|>", "<|python_end|>", "```json\n", "```", CALL, LLAMA, OTHER, '{"name": "f", ', '"arguments": {'),
    *(
        '"a": ',
        '"x',
        "\\",
        '"',
        "'",
        "}",
        "{",
        ",",
        ";",
        ":",
        "f(",
        "f",
        "weather",
        "a=",
        "1",
        ")",
        "True",
        " ",
        "\n",
        "é",
    ),
    *("<think>", "</think>", "words"),
)
TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join)
CUTS = st.lists(st.integers(0, 200), max_size=8)


def pieces(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    return [text[a:b] for a, b in pairwise(places)]


@pytest.mark.parametrize("form", CALL_FORMATS)
@pytest.mark.parametrize("reasoning", [None, False, True])
@given(text=TEXTS, cuts=CUTS)
def test_parts_do_not_depend_on_the_pieces(form: str, reasoning: bool | None, text: str, cuts: list[int]) -> None:
    def one() -> OutputParser:
        inner = parser(form)
        return inner if reasoning is None else ReasoningParser(TAGS[0], inner, opened=reasoning)

    stream = parts(one(), pieces(text, cuts))
    assert fold_parts(stream) == fold_parts(parts(one(), [text]))
    begun: list[int] = []
    for part in stream:  # contiguous from 0, each call's arguments after its beginning, and no empty part
        if isinstance(part, ToolCallBegin):
            assert part.index == len(begun)
            begun.append(part.index)
        elif isinstance(part, ToolCallArguments):
            assert part.index == begun[-1] and part.json
        else:
            assert part.text
    if "{" not in text and "(" not in text and reasoning is None:
        assert fold_parts(stream).text == text  # without a call, nothing is lost


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    arguments=st.dictionaries(st.text(), VALUES, max_size=4),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 2]),
)
@pytest.mark.parametrize("form", ["hermes", "llama3_json", "mistral", "json"])
def test_any_json_arrives(form: str, arguments: dict[str, Any], ascii_only: bool, indent: int | None) -> None:
    text = json.dumps({"name": "f", "arguments": arguments}, ensure_ascii=ascii_only, indent=indent)
    around = {"hermes": "<tool_call>{}</tool_call>", "mistral": "[TOOL_CALLS][{}]"}.get(form, "{}")
    ((name, came),) = calls(parse(form, around.replace("{}", text)))
    assert name == "f" and json.loads(came) == arguments


@given(arguments=st.dictionaries(st.sampled_from(["a", "b_2", "größe"]), VALUES, max_size=3))
def test_any_python_literal_arrives(arguments: dict[str, Any]) -> None:
    text = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    ((name, came),) = calls(parse("pythonic", f"[f({text})]"))
    assert name == "f" and json.loads(came) == arguments


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("'''a'b\n'''", "a'b\n"),
        ('""', ""),
        (r"'\x41\u00e9\U0001F600\d\0'", "Aé😀\\d\0"),
        ("(1, 2,)", [1, 2]),
        ("{'a': (), 'b': {},}", {"a": [], "b": {}}),
        ("1_000", 1000),
        ("-.5e1", -5.0),
        ("true", True),
    ],
)
def test_python_that_json_does_not_have(text: str, value: object) -> None:
    ((_, came),) = calls(parse("pythonic", f"[f(a={text})]"))
    assert json.loads(came) == {"a": value}


def test_the_format_is_found_from_the_template() -> None:
    found = {
        "{{ '<tool_call>' }}": "hermes",
        "{{ '[TOOL_CALLS]' }}": "mistral",
        "{{ '\"parameters\": ' }}": "llama3_json",
        "use [func_name1(params_name1=params_value1)]": "pythonic",
        "{{ tools }}": "json",
    }
    for template, name in found.items():
        assert format_of(template).name == name
    assert format_of("", ["<|python_tag|>"]).name == "llama3_json"
    assert format_of("<tool_call>", ["<|python_tag|>"]).name == "hermes"  # the template knows better
    assert format_named("hermes") is HERMES
    with pytest.raises(ConfigError, match="did you mean 'mistral'"):
        format_named("mistrall")
