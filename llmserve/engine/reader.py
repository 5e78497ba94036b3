"""The outputs of requests on their way to one reader: kept until it takes them. Lives on the event loop.

It is the one stop of a token between the engine's thread and the task that writes it out: no queue, no task and no lock
of its own, one timer for all deadlines, set anew only when it has fired, and a waker that runs the task at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any

from .plan.outputs import RequestOutput, fold

MAX_UNREAD = 64  # outputs of a request, kept apart for a slow reader before they are folded into one

Outputs = list[tuple[int, RequestOutput]]
"""An output, with its request's place among the reader's."""


class Reader:
    """The outputs of one or several requests in the order in which they come; a slow reader gets a request's joined.

    To be closed, which aborts the requests that have not ended.

    Attributes:
        opening: the task that makes the requests, where that takes time.
    """

    def __init__(self, request_ids: list[str], on_close: Callable[[Reader], None]) -> None:
        self.request_ids = request_ids
        self.opening: asyncio.Task[None] | None = None
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._unread: Outputs = []
        self._error: Exception | None = None
        self._closed = False
        self._waker = _Waker(self._loop)
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = 0.0

    async def get(self, deadline: float | None = None) -> Outputs:
        """New outputs, at least one; or none, when none has come by `deadline`, in the loop's seconds.

        Deadlines of one reader never go back. Raises the first error of any request, after what came before it.
        """
        if not self._unread and self._error is None:
            if deadline is not None:
                self._deadline = deadline
                if self._timer is None:
                    self._timer = self._loop.call_at(deadline, self._is_late)
            await self._waker
        if self._unread:
            outputs, self._unread = self._unread, []
            return outputs if len(outputs) == 1 else _joined(outputs)
        if self._error is not None:
            raise self._error
        return []

    def put(self, request: int, item: RequestOutput | Exception) -> None:
        """Keep what has come for the reader, and wake it: its task runs before this returns. Not for tasks to call."""
        if self._closed:
            return
        if isinstance(item, RequestOutput):
            self._unread.append((request, item))
            if len(self._unread) > MAX_UNREAD * len(self.request_ids):
                self._unread = _joined(self._unread)
        elif self._error is None:
            self._error = item
        self._waker.wake()

    def close(self) -> None:
        """Keep nothing more, and have what is left of the requests aborted."""
        if not self._closed:
            self._closed = True
            self._unread.clear()
            if self.opening is not None:
                self.opening.cancel()
            if self._timer is not None:
                self._timer.cancel()
            self._on_close(self)

    def _is_late(self) -> None:
        """Wake the reader, or sleep on: the deadline has moved whenever something had come."""
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._is_late)
        else:
            self._timer = None
            self._waker.wake()


class _Waker:
    """Wakes the one task that awaits it.

    To the task it is a future, as `asyncio.isfuture` tells them. Asyncio's own, when they are done, have the loop queue
    what awaits them for its next turn, with a look at every socket between; this one runs the task on the spot, and can
    be awaited again and again. It must be called from outside of tasks, since one cannot run within another.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asyncio_future_blocking = False
        self._resume: Callable[[_Waker], object] | None = None
        self._context: Context | None = None
        self._cancelled = False

    def wake(self) -> None:
        """Run the task until it waits again. Nothing happens where none waits."""
        resume, self._resume = self._resume, None
        if resume is not None:
            assert self._context is not None
            self._context.run(resume, self)

    # The protocol of a future, as a task uses it

    def __await__(self) -> Generator[Any, None, None]:
        self._asyncio_future_blocking = True  # says that it is a future, and awaited
        yield self

    def add_done_callback(self, resume: Callable[[_Waker], object], *, context: Context) -> None:
        self._resume, self._context = resume, context

    def cancel(self, msg: object = None) -> bool:
        resume, self._resume = self._resume, None
        if resume is None:
            return False
        self._cancelled = True
        self._loop.call_soon(resume, self, context=self._context)
        return True

    def result(self) -> None:
        if self._cancelled:
            self._cancelled = False
            raise asyncio.CancelledError


def _joined(outputs: Outputs) -> Outputs:
    """One output for each request, in the order of their first."""
    by_request: dict[int, list[RequestOutput]] = {}
    for request, output in outputs:
        by_request.setdefault(request, []).append(output)
    return [(request, fold(several)) for request, several in by_request.items()]
