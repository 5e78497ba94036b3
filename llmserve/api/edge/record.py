"""The record of one request, for the access log, the metrics and the traces. It never holds a prompt or an answer.

The record is found through a context variable, so that the code that serves a request, and every line that is logged
meanwhile, knows which request it is.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from ...engine import RequestOutput, SamplingParams

_MAX_REASON = 200  # characters


@dataclass(slots=True)
class Record:
    """One request.

    Attributes:
        path: as it was sent, still percent-encoded, so that it fits on one line.
        started, started_at: when it came, in monotonic seconds and in Unix seconds.
        status: of the answer; 0 while there is none.
        reason: what an answer that is an error says.
        client_left: the client went away before the answer was complete.
        route: the template of the path, once it is known, as in "/v1/models/{name}".
        queue_seconds, first_token_seconds: until the engine took it up, and until the first token; None without either.
        params: what was asked of sampling, if anything was generated.
    """

    id: str
    method: str
    path: str
    client: str = ""
    started: float = field(default_factory=time.monotonic)
    started_at: float = field(default_factory=time.time)
    status: int = 0
    reason: str | None = None
    client_left: bool = False
    route: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    queue_seconds: float | None = None
    first_token_seconds: float | None = None
    total_seconds: float = 0.0
    finish_reasons: list[str] = field(default_factory=list)
    params: SamplingParams | None = None

    def add_prompt(self, prompt_tokens: int, params: SamplingParams) -> None:
        """Note a prompt that goes to the engine."""
        self.prompt_tokens += prompt_tokens
        self.params = params

    def add_output(self, output: RequestOutput, first: bool) -> None:
        """Note an output of the engine; `first`: it is the first of its prompt."""
        if first:
            self.cached_tokens += output.num_cached_tokens
        for delta in output.deltas:
            self.completion_tokens += len(delta.token_ids)
            if delta.token_ids and self.first_token_seconds is None:
                self.first_token_seconds = time.monotonic() - self.started
                if output.scheduled_at is not None:
                    self.queue_seconds = max(0.0, output.scheduled_at - self.started)
            if delta.finish_reason is not None:
                self.finish_reasons.append(delta.finish_reason)

    def finish(self) -> None:
        """Note that the answer is complete, or has been given up."""
        self.total_seconds = time.monotonic() - self.started

    def as_dict(self) -> dict[str, Any]:
        """For one line of the access log; figures that a request does not have are left out."""
        line: dict[str, Any] = {
            "id": self.id,
            "client": self.client,
            "method": self.method,
            "path": self.path,
            "status": self.status,
        }
        if self.params is not None:
            line |= {"in": self.prompt_tokens, "cached": self.cached_tokens, "out": self.completion_tokens}
        for name, seconds in (("queued", self.queue_seconds), ("first", self.first_token_seconds)):
            if seconds is not None:
                line[name] = round(seconds, 4)
        line["total"] = round(self.total_seconds, 4)
        if self.client_left:
            line["left"] = True
        if self.reason is not None and 400 <= self.status < 500:  # what is the server's own fault has a line by itself
            line["reason"] = self.reason[:_MAX_REASON]
        return line


current: ContextVar[Record | None] = ContextVar("record", default=None)
