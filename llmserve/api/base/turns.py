"""Chat messages made from another endpoint's form: pieces that belong together there are one message here."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ...errors import RequestError

MessageFields = dict[str, Any]


def text_part(text: str) -> dict[str, str]:
    """A text as a part of a message's content."""
    return {"type": "text", "text": text}


def string_in(fields: Mapping[str, Any], name: str, where: str) -> str:
    """A field that must be a string. Raises RequestError."""
    value = fields.get(name)
    if not isinstance(value, str):
        raise RequestError(f"{where}.{name} must be a string.", param=where)
    return value


def merged(messages: Iterable[MessageFields], roles: Collection[str]) -> list[MessageFields]:
    """The messages, neighbours of one of these roles joined. `content` comes as a list of parts (none for null)."""
    joined: list[MessageFields] = []
    for message in messages:
        last = joined[-1] if joined else {}
        if message["role"] != last.get("role") or message["role"] not in roles:
            joined.append(dict(message))
            continue
        for name in ("content", "tool_calls"):
            if name in message:
                last[name] = [*last.get(name, []), *message[name]]
        if "reasoning_content" in message:
            last["reasoning_content"] = last.get("reasoning_content", "") + message["reasoning_content"]
    return [{**message, "content": _plain(message.get("content", []))} for message in joined]


def _plain(content: list[Any]) -> Any:
    """One text as a string, which every template takes."""
    if len(content) == 1 and content[0].get("type") == "text":
        return content[0]["text"]
    return content or None


@contextmanager
def with_client_names(names: Mapping[str, str]) -> Iterator[None]:
    """Errors about a chat's fields, told to clients who know these by other names: `names` maps ours to theirs."""
    try:
        yield
    except RequestError as error:
        for ours, theirs in names.items():
            whole = re.compile(rf"\b{re.escape(ours)}\b")
            error.args = (whole.sub(theirs, str(error)),)
            error.param = error.param and whole.sub(theirs, error.param)
        raise
