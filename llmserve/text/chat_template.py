"""The chat template of a checkpoint: messages in, the prompt's text out.

The template is the checkpoint's own Jinja, given the variables that transformers gives it. What OpenAI's clients send
and what templates expect differ in small ways (a list of content parts, the developer role, tool arguments as a JSON
string); those are adapted here. A checkpoint without a template is never given another model's.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from ..errors import CheckpointError, RequestError
from .sandbox import compile_template, render
from .tokenizer import read_json

TemplateMessage = Mapping[str, Any]

_PROBE = "probe7Q3z"
_END_MARK = "end7Q3z"
_OWN_VARIABLES = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
_REASONING = ("reasoning_content", "reasoning", "thinking")


class ChatTemplate:
    """One checkpoint's template, or its named templates (`default`, `tool_use`, …).

    Attributes:
        available: False when the checkpoint brings none; `render` then refuses.
        takes_parts: the template wants `content` as a list of parts and cannot read a plain string.
        source: its text, or that of all of them.
        takes_tools: the template tells the model which tools there are.
        knows_developer: the template has a developer role of its own; elsewhere it is written as system.
    """

    def __init__(
        self, sources: str | Mapping[str, str] | None, special_tokens: Mapping[str, str] | None = None
    ) -> None:
        """Compile the template(s). Raises CheckpointError for one that is not Jinja."""
        named = {"default": sources} if isinstance(sources, str) else dict(sources or {})
        self._special_tokens = dict(special_tokens or {})
        self._templates: dict[str, jinja2.Template] = {}
        for name, source in named.items():
            try:
                self._templates[name] = compile_template(source)
            except jinja2.TemplateError as error:
                raise CheckpointError(f"The chat template {name!r} cannot be compiled: {error}.") from error
        self.available = bool(self._templates)
        self.source = "\n".join(named.values())
        self.knows_developer = any("developer" in source for source in named.values())
        self.takes_parts = self.available and not self._reads(_PROBE) and self._reads([_text_part(_PROBE)])
        self.takes_tools = self.available and self._shows_tools()

    @classmethod
    def from_directory(
        cls, path: str | Path, special_tokens: Mapping[str, str] | None = None, override: str | Path | None = None
    ) -> ChatTemplate:
        """The template in `override` if given, else that of the checkpoint: chat_template.jinja (and
        additional_chat_templates/), chat_template.json, or the entry in tokenizer_config.json, in this order.
        """
        if override is not None:
            return cls(_read(Path(override)), special_tokens)
        path = Path(path)
        more = {f.stem: _read(f) for f in sorted(path.glob("additional_chat_templates/*.jinja"))}
        if (path / "chat_template.jinja").is_file():
            return cls({"default": _read(path / "chat_template.jinja"), **more}, special_tokens)
        for file in (path / "chat_template.json", path / "tokenizer_config.json"):
            if named := _named(read_json(file).get("chat_template"), file):
                return cls({**named, **more}, special_tokens)
        return cls(more, special_tokens)

    def render(
        self,
        messages: Sequence[TemplateMessage],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for these messages. Encode it with `add_special_tokens=False`: the template writes its own.

        Args:
            continue_final_message: end with the text of the last message, which is the assistant's, for the model to go
                on from; there is no generation prompt then.
            variables: further names for the template, such as `enable_thinking`.

        Raises:
            RequestError: the template refuses the messages, or there is no template.
        """
        if not self.available:
            raise RequestError(
                "This model has no chat template, so it cannot chat: use /v1/completions, or start the server with "
                "--chat-template FILE (a Jinja file in the format of Hugging Face).",
                param="messages",
                code="no_chat_template",
            )
        name = "tool_use" if tools and "tool_use" in self._templates else "default"
        template = self._templates.get(name) or next(iter(self._templates.values()))
        taken = _OWN_VARIABLES.union(self._special_tokens).intersection(variables or {})
        if taken:
            raise RequestError(f"{min(taken)!r} is not the request's to set.", param="chat_template_kwargs")
        wanted = [self._adapted(i, message) for i, message in enumerate(messages)]
        if continue_final_message:
            _mark_end(wanted)
        try:
            text = render(
                template,
                {
                    **self._special_tokens,
                    **(variables or {}),
                    "messages": wanted,
                    "tools": list(tools) if tools else None,
                    "documents": list(documents) if documents else None,
                    "add_generation_prompt": add_generation_prompt and not continue_final_message,
                },
            )
            return _up_to_mark(text) if continue_final_message else text
        except RequestError:
            raise
        except RecursionError as error:
            raise RequestError("The model's chat template recurses without end.", param="messages") from error
        except Exception as error:  # the template's code can raise anything, over anything in a message
            raise RequestError(f"The model's chat template refuses this: {error}", param="messages") from error

    def _reads(self, content: str | list[dict[str, str]]) -> bool:
        """Whether a user message with this content comes out as its text, and not as Python's view of a list."""
        template = self._templates.get("default") or next(iter(self._templates.values()))
        user, reply = {"role": "user", "content": content}, {"role": "assistant", "content": content}
        for messages in ([user], [{"role": "system", "content": content}, user], [user, reply]):
            try:
                text = render(template, {**self._special_tokens, "messages": messages, "add_generation_prompt": True})
            except Exception:
                continue
            if _PROBE in text:
                return "'type'" not in text and '"type"' not in text
        return False

    def _shows_tools(self) -> bool:
        """Whether a tool that is offered with a message comes out in the prompt."""
        function = {"name": _PROBE, "description": "", "parameters": {"type": "object", "properties": {}}}
        user = {"role": "user", "content": "Hi"}
        for messages in ([user], [{"role": "system", "content": "Hi"}, user]):
            with contextlib.suppress(RequestError):
                if _PROBE in self.render(messages, tools=[{"type": "function", "function": function}]):
                    return True
        return False

    def _adapted(self, index: int, message: TemplateMessage) -> dict[str, Any]:
        wanted = dict(message)
        if wanted.get("role") == "developer" and not self.knows_developer:
            wanted["role"] = "system"
        content = wanted.get("content")
        if isinstance(content, (list, tuple)):
            texts = [_text_of(part, f"messages[{index}].content") for part in content]
            wanted["content"] = [_text_part(text) for text in texts] if self.takes_parts else "\n".join(texts)
        elif isinstance(content, str) and self.takes_parts:
            wanted["content"] = [_text_part(content)]
        elif content is None and not wanted.get("tool_calls"):
            # Templates add content to strings; they look for None only beside tool calls.
            wanted["content"] = [] if self.takes_parts else ""
        elif content is None:
            wanted["content"] = None
        if wanted.get("tool_calls"):
            wanted["tool_calls"] = [_with_parsed_arguments(call) for call in wanted["tool_calls"]]
        else:
            wanted.pop("tool_calls", None)  # templates ask whether it is there, not whether it holds anything
        reasoning = next((wanted[name] for name in _REASONING if wanted.get(name) is not None), None)
        if reasoning is not None:
            wanted["reasoning_content"] = reasoning
        return wanted


def _mark_end(messages: list[dict[str, Any]]) -> None:
    """Put a mark behind the text of the last message. Raises RequestError if it is none that could be gone on from."""
    last = messages[-1] if messages else {}
    content = last.get("content")
    text = content[-1]["text"] if isinstance(content, list) and content else content
    if last.get("role") != "assistant" or last.get("tool_calls") or not isinstance(text, str) or not text.strip():
        raise RequestError("Only a last message of the assistant's with a text can be continued.", param="messages")
    marked = text.rstrip() + _END_MARK  # templates trim, and models write the space before a word with the word
    last["content"] = [*content[:-1], _text_part(marked)] if isinstance(content, list) else marked


def _up_to_mark(text: str) -> str:
    end = text.rfind(_END_MARK)
    if end < 0:
        raise RequestError("The model's chat template does not show the last message as it is.", param="messages")
    return text[:end]


def _text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _text_of(part: object, where: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping):
        for kind in ("text", "refusal"):
            if part.get("type", kind) in (kind, f"input_{kind}", f"output_{kind}") and isinstance(part.get(kind), str):
                return str(part[kind])
        raise RequestError(f"Content parts of type {part.get('type')!r} are not supported, only text.", param=where)
    raise RequestError(f"A content part must be an object, got {type(part).__name__}.", param=where)


def _with_parsed_arguments(call: object) -> object:
    """OpenAI has a function's arguments as a JSON string; templates write them out themselves, from an object."""
    if not isinstance(call, Mapping) or not isinstance(function := call.get("function"), Mapping):
        return call
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments or "{}")
        except ValueError:
            return call
        if isinstance(parsed, dict):
            return {**call, "function": {**function, "arguments": parsed}}
    return call


def _named(entry: object, file: Path) -> dict[str, str]:
    """Name to template, of one template, of a list of named ones, or of an object of them."""
    if isinstance(entry, str):
        return {"default": entry}
    pairs: list[tuple[Any, Any]]
    if isinstance(entry, list):
        pairs = [(item.get("name"), item.get("template")) if isinstance(item, dict) else (None, None) for item in entry]
    else:
        pairs = list(entry.items()) if isinstance(entry, dict) else []
    if not all(isinstance(name, str) and isinstance(template, str) for name, template in pairs):
        raise CheckpointError(
            f"{file}: 'chat_template' must be a template, or a list of objects with name and template."
        )
    return dict(pairs)


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"The chat template {file} cannot be read: {error}.") from error
