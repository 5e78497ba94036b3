"""`llmserve chat`: a conversation in the terminal, or with a model that has no chat template, texts that it
continues."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from .console import say
from .errors import RequestError
from .llm import LLM, SamplingParams


def converse(llm: LLM, system: str | None, temperature: float | None, max_tokens: int) -> None:
    """Read a line, stream the answer, until /exit or the end of the input. A model without a chat template continues
    each line by itself."""
    opening: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    params = replace(llm.default_params, max_tokens=max_tokens)
    if temperature is not None:
        params = replace(params, temperature=temperature)
    chats = llm.chat_template.available
    manner = "/reset starts over" if chats else "It has no chat template and continues what you type"
    say(f"{llm.compiled.name} ({llm.compiled.scheme}). {manner}, /exit leaves.")
    while (line := _read()) is not None:
        if line == "/exit":
            return
        if line == "/reset":
            messages = list(opening)
            continue
        if not line:
            continue
        messages.append({"role": "user", "content": line})
        try:
            pieces = llm.chat(messages, params) if chats else _continued(llm, line, params)
            messages.append({"role": "assistant", "content": _answer(pieces)})
        except RequestError as error:  # the conversation outgrew the context, say
            messages.pop()
            say(f"{error} /reset starts over.", "red")


def _continued(llm: LLM, text: str, params: SamplingParams) -> Iterator[str]:
    for output in llm.stream(text, params):
        yield "".join(delta.text for delta in output.deltas)


def _read() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None


def _answer(pieces: Iterator[str]) -> str:
    text, count, began = "", 0, time.perf_counter()
    try:
        for piece in pieces:
            text += piece
            count += 1
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        text += " …"
    print()
    if sys.stdin.isatty():
        rate = count / (time.perf_counter() - began)
        say(f"{count} tokens, {rate:.1f} per second", "dim")
    return text
