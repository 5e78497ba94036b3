"""Reasoning, end to end: in both fields that clients look for, counted, and given back to the model."""

from __future__ import annotations

from typing import Any

import pytest

from .server import MODEL, Executor, Running, serve
from .test_tools import ASK, HERE, USER

CHAT: dict[str, Any] = {"model": MODEL, "messages": USER, "max_tokens": 200}
OPENED = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<think>\n{% endif %}"


def saying(text: str) -> Executor:
    return Executor(script=lambda prompt: text, max_model_len=1024)


def streamed(server: Running, **ask: Any) -> tuple[str, str, str, int]:
    """Reasoning under either name, content, and the count of reasoning tokens."""
    content, texts, count = "", {"reasoning_content": "", "reasoning": ""}, -1
    options = {"stream": True, "stream_options": {"include_usage": True}}
    for chunk in server.openai().chat.completions.create(**ask, **options):
        if chunk.usage:
            count = chunk.usage.completion_tokens_details.reasoning_tokens
        for choice in chunk.choices:
            delta = choice.delta.model_dump(exclude_unset=True)
            content += delta.get("content") or ""
            for name in texts:
                texts[name] += delta.get(name, "")
    return texts["reasoning_content"], texts["reasoning"], content, count


@pytest.mark.parametrize(
    ("template", "text", "thought", "said", "counted"),
    [
        (None, "<think>\nhm, é\n</think>\n\nYes.", "hm, é", "Yes.", "<think>\nhm, é\n</think>"),
        (OPENED, "hm\n</think>\n\nYes.", "hm", "Yes.", "hm\n</think>"),
        (None, "Yes, <think>", None, "Yes, <think>", ""),
    ],
)
def test_reasoning_whole_and_streamed(
    template: str | None, text: str, thought: str | None, said: str, counted: str
) -> None:
    options = {} if template is None else {"template": template}
    with serve(executor=saying(text), **options) as server:
        answer = server.openai().chat.completions.create(**CHAT)
        message: Any = answer.choices[0].message
        assert message.content == said
        assert getattr(message, "reasoning_content", None) == getattr(message, "reasoning", None) == thought
        tokens = len(server.tokenizer.encode(counted))
        if counted.startswith("<think>"):
            tokens -= len("<think>") - 1  # counted once it is whole
        assert answer.usage and answer.usage.completion_tokens_details
        assert answer.usage.completion_tokens_details.reasoning_tokens == tokens
        assert streamed(server, **CHAT) == (thought or "", thought or "", said, tokens)


def test_an_answer_that_is_all_thought() -> None:
    with serve(executor=saying("<think>hm hm hm")) as server:
        choice: Any = server.openai().chat.completions.create(**{**CHAT, "max_tokens": 12}).choices[0]
        assert (choice.message.content, choice.finish_reason) == ("", "length")
        assert choice.message.reasoning == "hm hm"


def test_thought_then_a_call() -> None:
    with serve(executor=saying(f"<think>\nhm\n</think>\n<tool_call>{HERE}</tool_call>")) as server:
        message: Any = server.openai().chat.completions.create(**ASK).choices[0].message
        assert message.reasoning == "hm" and message.content is None and len(message.tool_calls) == 1


def test_what_the_template_is_told() -> None:
    prompts: list[str] = []
    with serve(executor=Executor(script=lambda prompt: prompts.append(prompt) or "x")) as server:  # type: ignore[func-returns-value]
        client = server.openai()
        client.chat.completions.create(**CHAT, extra_body={"chat_template_kwargs": {"enable_thinking": False}})
        assert prompts[-1].endswith("<think>\n\n</think>\n\n")
        call: Any = {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
        turn: Any = {"role": "assistant", "content": None, "tool_calls": [call]}
        result: Any = {"role": "tool", "tool_call_id": "call_1", "content": "12"}
        for name in ("reasoning_content", "reasoning"):
            client.chat.completions.create(**{**CHAT, "messages": [*USER, {**turn, name: "earlier"}, result]})
            assert "<think>\nearlier\n</think>" in prompts[-1]
    effort = "{{ messages[0].content }}{{ reasoning_effort }}"
    with serve(executor=Executor(script=lambda prompt: prompts.append(prompt) or "x"), template=effort) as server:  # type: ignore[func-returns-value]
        server.openai().chat.completions.create(**CHAT, reasoning_effort="low")
        assert prompts[-1] == "Hilow"
