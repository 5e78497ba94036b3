"""Output items of a response: parts of the answer in, events out, and the items that they amount to.

Every item, and every part of its content, has its beginning, its deltas and its end, one after another. A response
that is not streamed takes the items and leaves the events.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from ....text.parsers.base import Part, ReasoningPart, TextPart, ToolCallArguments, ToolCallBegin

JsonObject = dict[str, Any]


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


class OutputItems:
    """Collects one response's items.

    Attributes:
        output: the items so far; the last one may be in progress.
    """

    def __init__(self, summarize: bool) -> None:
        """`summarize`: give reasoning as its own summary too, for clients that show nothing else."""
        self.output: list[JsonObject] = []
        self._summarize = summarize
        self._open: object = None  # the kind of part that the last item is made of

    def take(self, parts: Iterable[Part], logprobs: list[JsonObject]) -> Iterator[JsonObject]:
        """The events of these parts; `logprobs` are of the tokens that brought them."""
        for part in parts:
            kind = part.index if isinstance(part, (ToolCallBegin, ToolCallArguments)) else type(part)
            if kind != self._open:
                yield from self.close("completed")
                self._open = kind
                yield from self._begin(part)
            if isinstance(part, TextPart):
                content = self._item["content"][0]
                content["text"] += part.text
                content["logprobs"] += logprobs
                yield self._event("output_text.delta", content_index=0, delta=part.text, logprobs=logprobs)
                logprobs = []
            elif isinstance(part, ReasoningPart):
                yield from self._add_reasoning(part.text)
            elif isinstance(part, ToolCallArguments) and part.json:
                self._item["arguments"] += part.json
                yield self._event("function_call_arguments.delta", delta=part.json)

    def close(self, status: str) -> Iterator[JsonObject]:
        """End the item that is open, if one is: it is "completed" or "incomplete"."""
        if self._open is None:
            return
        self._open = None
        item = self._item
        item["status"] = status
        if item["type"] == "function_call":
            yield self._event("function_call_arguments.done", arguments=item["arguments"])
        elif item["type"] == "message":
            part = item["content"][0]
            yield self._event("output_text.done", content_index=0, text=part["text"], logprobs=part["logprobs"])
            yield self._event("content_part.done", content_index=0, part=dict(part))
        else:
            part = item["content"][0]
            yield self._event("reasoning_text.done", content_index=0, text=part["text"])
            yield self._event("content_part.done", content_index=0, part=dict(part))
            for summary in item["summary"]:
                yield self._event("reasoning_summary_text.done", summary_index=0, text=summary["text"])
                yield self._event("reasoning_summary_part.done", summary_index=0, part=dict(summary))
        yield self._item_event("output_item.done")

    @property
    def _item(self) -> JsonObject:
        return self.output[-1]

    def _begin(self, part: Part) -> Iterator[JsonObject]:
        if isinstance(part, ToolCallBegin):
            call = {"call_id": part.call_id, "name": part.name, "arguments": ""}
            self.output.append({"id": new_id("fc"), "type": "function_call", "status": "in_progress", **call})
            yield self._item_event("output_item.added")
            return
        if isinstance(part, TextPart):
            content: JsonObject = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            self.output.append({"id": new_id("msg"), "type": "message", "status": "in_progress", "role": "assistant"})
        else:
            content = {"type": "reasoning_text", "text": ""}
            reasoning: JsonObject = {"summary": [], "encrypted_content": None}
            self.output.append({"id": new_id("rs"), "type": "reasoning", "status": "in_progress", **reasoning})
        self._item["content"] = []
        yield self._item_event("output_item.added")
        self._item["content"].append(content)
        yield self._event("content_part.added", content_index=0, part=_copy(content))
        if self._summarize and isinstance(part, ReasoningPart):
            self._item["summary"].append({"type": "summary_text", "text": ""})
            yield self._event("reasoning_summary_part.added", summary_index=0, part=dict(self._item["summary"][0]))

    def _add_reasoning(self, text: str) -> Iterator[JsonObject]:
        self._item["content"][0]["text"] += text
        yield self._event("reasoning_text.delta", content_index=0, delta=text)
        for summary in self._item["summary"]:
            summary["text"] += text
            yield self._event("reasoning_summary_text.delta", summary_index=0, delta=text)

    def _event(self, name: str, **fields: Any) -> JsonObject:
        at = len(self.output) - 1
        return {"type": f"response.{name}", "item_id": self._item["id"], "output_index": at, **fields}

    def _item_event(self, name: str) -> JsonObject:
        return {"type": f"response.{name}", "output_index": len(self.output) - 1, "item": _copy(self._item)}


def _copy(value: Any) -> Any:
    """An event is written later than it is made, when the item has gone on."""
    if isinstance(value, dict):
        return {name: _copy(its) for name, its in value.items()}
    return [_copy(its) for its in value] if isinstance(value, list) else value
