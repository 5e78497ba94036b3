"""`llmserve chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import Any

from .console import say
from .errors import RequestError
from .llm import LLM


def converse(llm: LLM, system: str | None, temperature: float | None, max_tokens: int) -> None:
    """Read a line, stream the answer, until /exit or the end of the input."""
    opening: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    params = replace(llm.default_params, max_tokens=max_tokens)
    if temperature is not None:
        params = replace(params, temperature=temperature)
    say(f"{llm.compiled.name} ({llm.compiled.scheme}). /reset starts over, /exit leaves.")
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
            messages.append({"role": "assistant", "content": _answer(llm, messages, params)})
        except RequestError as error:  # the conversation outgrew the context, say
            messages.pop()
            say(f"{error} /reset starts over.", "red")


def _read() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None


def _answer(llm: LLM, messages: list[dict[str, Any]], params: Any) -> str:
    text, pieces, began = "", 0, time.perf_counter()
    try:
        for piece in llm.chat(messages, params):
            text += piece
            pieces += 1
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        text += " …"
    print()
    if sys.stdin.isatty():
        rate = pieces / (time.perf_counter() - began)
        say(f"{pieces} tokens, {rate:.1f} per second", "dim")
    return text
