"""Chat templates: the same text as transformers gives, OpenAI's messages put right, and bounds that hold."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from llmserve.errors import CheckpointError, RequestError
from llmserve.text import bounds
from llmserve.text.chat_template import ChatTemplate
from llmserve.weights.source import copy_companions

from . import samples, templates

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}
USER = {"role": "user", "content": "Hi <there> & co"}
TALK = [
    {"role": "system", "content": " Be brief. "},
    USER,
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Weather?"},
]
TOOL_TALK = [
    *TALK,
    {"role": "assistant", "content": None, "tool_calls": [templates.CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "7 °C"},
]


@pytest.mark.reference
@pytest.mark.parametrize("style", ["CHATML", "LLAMA3", "MISTRAL"])
@pytest.mark.parametrize(
    ("messages", "options"),
    [
        ([USER], {}),
        (TALK, {}),
        (TALK, {"add_generation_prompt": False}),
        (TALK, {"enable_thinking": False}),
        (TALK, {"tools": [templates.TOOL, templates.TOOL]}),
        (TOOL_TALK, {"tools": [templates.TOOL]}),
        ([USER, {"role": "assistant", "content": "x", "reasoning_content": "hm\n"}], {}),
    ],
    ids=["one", "talk", "no-prompt", "thinking", "tools", "called", "reasoning"],
)
def test_as_transformers_renders(style: str, messages: list[dict[str, Any]], options: dict[str, Any]) -> None:
    if style == "MISTRAL" and messages is TOOL_TALK:
        pytest.skip("this style has no tools")
    from transformers import PreTrainedTokenizerFast

    reference = PreTrainedTokenizerFast(
        tokenizer_object=samples.byte_level(), chat_template=getattr(templates, style), **SPECIALS
    )
    options = {"add_generation_prompt": True, **options}
    expected = reference.apply_chat_template(messages, tokenize=False, **options)
    extra = {name: options.pop(name) for name in ["enable_thinking"] if name in options}
    template = ChatTemplate(getattr(templates, style), SPECIALS)
    assert template.render(messages, variables=extra, **options) == expected


def test_tool_arguments_may_be_a_json_string() -> None:
    call = {**templates.CALL, "function": {"name": "weather", "arguments": '{"city": "Zürich"}'}}
    template = ChatTemplate(templates.CHATML, SPECIALS)
    as_string = template.render([USER, {"role": "assistant", "content": None, "tool_calls": [call]}])
    as_object = template.render([USER, {"role": "assistant", "content": None, "tool_calls": [templates.CALL]}])
    assert as_string == as_object
    assert '"arguments": {"city": "Zürich"}' in as_string


def test_parts_become_text_for_templates_that_want_strings() -> None:
    template = ChatTemplate(templates.CHATML, SPECIALS)
    assert not template.takes_parts
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert "user\none\ntwo<|im_end|>" in template.render([{"role": "user", "content": parts}])


def test_text_becomes_parts_for_templates_that_want_parts() -> None:
    template = ChatTemplate(templates.PARTS)
    assert template.takes_parts
    assert template.render([USER, {"role": "assistant"}]) == "<user>Hi <there> & co<assistant>"


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": {"url": "x"}}, 3, {"type": "text"}])
def test_parts_that_are_not_text_are_refused(part: object) -> None:
    with pytest.raises(RequestError) as caught:
        ChatTemplate(templates.CHATML).render([USER, {"role": "user", "content": [part]}])
    assert caught.value.param == "messages[1].content"


@pytest.mark.parametrize("content", [None, ""])
def test_content_may_be_missing(content: str | None) -> None:
    message = {"role": "assistant", "content": content, "tool_calls": []}
    assert "assistant\n\n\n<|eot_id|>" not in ChatTemplate(templates.LLAMA3, SPECIALS).render([USER, message])


def test_developer_is_system_where_the_template_has_no_such_role() -> None:
    developer = [{"role": "developer", "content": "Brief."}, USER]
    system = [{"role": "system", "content": "Brief."}, USER]
    template = ChatTemplate(templates.CHATML)
    assert template.render(developer) == template.render(system)
    own = ChatTemplate("{# developer #}{% for m in messages %}{{ m.role }} {% endfor %}")
    assert own.render(developer) == "developer user "


def test_what_the_template_says_reaches_the_client() -> None:
    with pytest.raises(RequestError, match="roles must alternate") as caught:
        ChatTemplate(templates.MISTRAL, SPECIALS).render([USER, USER])
    assert (caught.value.status, caught.value.param) == (400, "messages")


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "bos_token"])
def test_a_request_cannot_set_the_servers_variables(name: str) -> None:
    with pytest.raises(RequestError, match=name):
        ChatTemplate(templates.CHATML, SPECIALS).render([USER], variables={name: "x"})


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 1000 * 100 }}{% endfor %}",
        "{% set ns = namespace(s='xx') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='xx') %}{% for i in range(64) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(64) %}{% set ns.s %}{{ns.s}}{{ns.s}}{% endset %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(64) %}{% set ns.s = [ns.s, ns.s]|join %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(64) %}{% set ns.s=ns.s|replace('x', ns.s*9) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{{ 'x' * 10**12 }}",
        "{{ (9**9)**(9**9) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 1000000000) }}",
        "{{ 'x'.ljust(10**9) }}",
        "{{ 'x'|indent(10**9, true) }}",
        # A container that holds another many times over, and whatever would print, compare or hash it.
        "{% set ns = namespace(l=[]) %}{% for i in range(64) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
        "{% set ns = namespace(l=[]) %}{% for i in range(64) %}{% set ns.l = (ns.l, ns.l) %}{% endfor %}{{ ns.l ~ 1 }}",
        "{% set ns = namespace(l=1) %}{% for i in range(64) %}{% set ns.l = {1: ns.l, 2: ns.l} %}{% endfor %}"
        "{{ ns.l | tojson }}",
        "{% set ns = namespace(l=[]) %}{% for i in range(64) %}{% set ns.l = [ns.l] * 2 %}{% endfor %}{{ ns.l }}",
        "{% set ns = namespace(l=1) %}{% for i in range(64) %}{% set ns.l = dict(a=ns.l, b=ns.l) %}{% endfor %}",
        "{% set ns = namespace(l='ab') %}{% for i in range(64) %}{% set ns.l = ns.l|batch(1, ns.l)|list %}"
        "{% set ns.l = ns.l|slice(1, ns.l)|list + ns.l %}{% endfor %}{{ ns.l }}",
        "{% macro f(n) %}{{ f(n-1, varargs, varargs) if n else varargs }}{% endmacro %}{{ f(64) }}",
        "{% set a = namespace() %}{% set b = namespace(x=a, y=a) %}{{ b }}",
        "{% set a = namespace() %}{% set a.x = a %}{{ a }}",
        "{% set ns = namespace(d=0) %}{% block a %}{% if ns.d < 60 %}{% set ns.d = ns.d + 1 %}{{ self.a() }}"
        "{{ self.a() }}{% set ns.d = ns.d - 1 %}{% endif %}{% endblock %}",
        # Many long texts at once, none of them too long.
        "{{ (['x' * 1000000] * 1000)|map('upper')|list|length }}",
        "{{ '{0}{0}{0}{0}{0}{0}{0}{0}'.format('x' * 10000000) }}",
        "{{ '%s%s%s%s%s%s%s%s' % (('x' * 9999999,) * 8) }}",
        "{{ ('x' * 99999).translate({120: 'y' * 99999}) }}",
        "{{ ('x ' * 30000000).split()|length }}",
        "{{ (',' * 30000000).split(',')|length }}",
        "{{ ('x' * 30000000)|list|length }}",
        "{{ [1, 2, 3]|join(d='x' * 60000000) }}",
        "{{ range(99999)|map('string')|join('x' * 99999) }}",
        "{{ ([[[[1] * 9] * 9] * 9] * 9)|tojson(indent=1000) * 9 }}",
        # Numbers
        "{% set ns = namespace(n=9) %}{% for i in range(64) %}{% set ns.n = ns.n * ns.n %}{% endfor %}{{ ns.n % 7 }}",
        "{{ ('f' * 99999)|int(base=16) // 3 }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
    ],
)
def test_bounds(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_STEPS", 10_000)  # for the time that the real one takes
    # The condition keeps the probes that look at a template's tastes from running into the bound.
    template = ChatTemplate("{% if bounded %}" + source + "{% endif %}")
    with pytest.raises(RequestError, match="chat template"):
        template.render([USER], variables={"bounded": True})


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ raise_exception.__code__ }}",
        "{{ ''|attr('__class__') }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{{ [messages]|map(attribute='__class__')|list }}",
        "{{ self._TemplateReference__context }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ namespace.__init__ }}",
    ],
)
def test_no_attribute_leads_out(source: str) -> None:
    try:
        text = ChatTemplate(source).render([USER])
    except RequestError:
        return
    assert text in ("", "[Undefined]"), text


def test_a_template_that_only_takes_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_SECONDS", 0.2)
    source = "{% set s = 'x' * 10000000 %}{% for i in range(99999) %}{% set y = s.count('y') %}{% endfor %}"
    template = ChatTemplate("{% if bounded %}" + source + "{% endif %}")
    begun = time.monotonic()
    with pytest.raises(RequestError, match=r"more than .* seconds"):
        template.render([USER], variables={"bounded": True})
    assert time.monotonic() - begun < 5


def test_containers_of_an_ordinary_size_are_within_bounds() -> None:
    source = (
        "{% set ns = namespace(all=[]) %}{% for m in messages %}{% set ns.all = ns.all + [m.content] %}{% endfor %}"
        "{{ ns.all|length }} {{ {'a': (1, 2)} }} {{ [1, [2]]|tojson(indent=2) }} {{ ['a', 'b']|join(', ') }}"
    )
    assert ChatTemplate(source).render([USER] * 300).startswith("300 {'a': (1, 2)} [\n  1,\n")


def test_long_conversations_are_within_bounds() -> None:
    assert len(ChatTemplate(templates.CHATML).render([USER] * 10_000)) > 300_000


def test_a_template_that_is_not_jinja_is_refused_at_start() -> None:
    with pytest.raises(CheckpointError, match="cannot be compiled"):
        ChatTemplate("{% for %}")


def test_without_a_template_chat_is_refused_with_the_way_out(tmp_path: Path) -> None:
    template = ChatTemplate.from_directory(tmp_path)
    assert not template.available
    with pytest.raises(RequestError, match="--chat-template FILE"):
        template.render([USER])


def test_where_templates_are_found(tmp_path: Path) -> None:
    def found(**options: Any) -> str:
        return ChatTemplate.from_directory(tmp_path).render([USER], **options)

    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "config"}))
    assert found() == "config"
    named = [{"name": "default", "template": "named"}, {"name": "tool_use", "template": "with tools"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert found() == "named"
    assert found(tools=[templates.TOOL]) == "with tools"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    assert found() == "json"
    (tmp_path / "chat_template.jinja").write_text("jinja")
    assert found() == "jinja"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("more")
    assert found() == "jinja" and found(tools=[templates.TOOL]) == "more"
    (tmp_path / "out").mkdir()
    copy_companions(tmp_path, tmp_path / "out")  # what a conversion takes with it
    assert ChatTemplate.from_directory(tmp_path / "out").render([USER], tools=[templates.TOOL]) == "more"
    (tmp_path / "mine.jinja").write_text("mine {{ bos_token }}")
    mine = ChatTemplate.from_directory(tmp_path, SPECIALS, override=tmp_path / "mine.jinja")
    assert mine.render([USER]) == "mine <s>"
    with pytest.raises(CheckpointError, match=r"gone\.jinja cannot be read"):
        ChatTemplate.from_directory(tmp_path, override=tmp_path / "gone.jinja")


@pytest.mark.parametrize("entry", [["named"], [{"name": "default"}], [{"name": 1, "template": "x"}], {"default": 1}])
def test_templates_without_name_or_text_are_told(tmp_path: Path, entry: Any) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": entry}))
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: 'chat_template' must be a template, or a list"):
        ChatTemplate.from_directory(tmp_path)


CONTINUED = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The sum "}]


@pytest.mark.parametrize("source", [templates.CHATML, templates.LLAMA3, templates.MISTRAL, templates.PARTS])
def test_the_last_message_can_be_continued(source: str) -> None:
    template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
    text = template.render(CONTINUED, continue_final_message=True)
    assert text.endswith("The sum")
    assert template.render(CONTINUED, add_generation_prompt=False).startswith(text)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        CONTINUED[:1],
        [*CONTINUED[:1], {"role": "assistant", "content": " "}],
        [*CONTINUED[:1], {"role": "assistant", "content": None, "tool_calls": [templates.CALL]}],
        [*CONTINUED[:1], {"role": "assistant", "content": "a", "tool_calls": [templates.CALL]}],
    ],
)
def test_what_cannot_be_continued_is_refused(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(RequestError, match="can be continued"):
        ChatTemplate(templates.CHATML).render(messages, continue_final_message=True)


def test_a_template_that_hides_the_last_message_is_told() -> None:
    with pytest.raises(RequestError, match="does not show"):
        ChatTemplate("{{ messages[0].content }}").render(CONTINUED, continue_final_message=True)
