"""A reader's outputs: their content, time and order, on a loop without an engine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar

import pytest

from llmserve.engine import ChoiceDelta, RequestOutput
from llmserve.engine.reader import MAX_UNREAD, Outputs, Reader
from llmserve.errors import EngineError, RequestError


def output(token: int, finished: bool = False) -> RequestOutput:
    return RequestOutput("", (ChoiceDelta(0, (token,), chr(97 + token % 26)),), 3, 0, finished)


def tokens(outputs: Outputs) -> list[tuple[int, tuple[int, ...]]]:
    return [(request, its.deltas[0].token_ids) for request, its in outputs]


def on_loop(test: Callable[[Reader, list[Reader]], Awaitable[None]], requests: int = 2) -> None:
    async def run() -> None:
        left: list[Reader] = []
        await asyncio.wait_for(test(Reader([str(i) for i in range(requests)], left.append), left), 10)

    asyncio.run(run())


def test_what_waits_comes_joined_by_request_and_errors_after_it() -> None:
    async def test(reader: Reader, left: list[Reader]) -> None:
        for request, token in ((1, 5), (0, 6), (1, 7)):
            reader.put(request, output(token))
        reader.put(0, RequestError("the first"))
        reader.put(1, EngineError("the second"))
        assert tokens(await reader.get()) == [(1, (5, 7)), (0, (6,))]
        for _ in range(2):
            with pytest.raises(RequestError, match="the first"):
                await reader.get()

    on_loop(test)


def test_little_is_kept_for_a_slow_reader_and_nothing_lost() -> None:
    async def test(reader: Reader, left: list[Reader]) -> None:
        for i in range(1000):
            reader.put(i % 3 % 2, output(i))
            assert len(reader._unread) <= 2 * MAX_UNREAD
        outputs = dict(tokens(await reader.get()))
        assert outputs == {r: tuple(i for i in range(1000) if i % 3 % 2 == r) for r in (0, 1)}

    on_loop(test)


def test_a_waiting_reader_runs_before_put_returns_and_in_its_own_context() -> None:
    async def test(reader: Reader, left: list[Reader]) -> None:
        log: list[object] = []
        name = ContextVar("name", default="the putter's")

        async def read() -> None:
            name.set("the reader's")
            for _ in range(3):
                log.extend(tokens(await reader.get()))
                log.append(name.get())

        def put() -> None:  # as the loop's own callback, not in a task
            for i in range(3):
                reader.put(0, output(i))
                log.append("put")

        task = asyncio.create_task(read())
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(put)
        await task
        assert log == [its for i in range(3) for its in ((0, (i,)), "the reader's", "put")]

    on_loop(test)


def test_a_deadline_brings_nothing_and_news_put_it_off() -> None:
    async def test(reader: Reader, left: list[Reader]) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        loop.call_later(0.05, reader.put, 0, output(1))
        assert tokens(await reader.get(began + 0.1)) == [(0, (1,))]
        assert await reader.get(began + 0.3) == []
        assert 0.29 < loop.time() - began < 1.0
        assert await reader.get(began + 0.3) == [], "it has passed"
        loop.call_later(0.01, reader.put, 1, output(2))
        assert tokens(await reader.get(loop.time() + 5)) == [(1, (2,))]
        reader.close()
        assert reader._timer is not None and reader._timer.cancelled()

    on_loop(test)


def test_a_cancelled_reader_stops_waiting_and_may_read_again() -> None:
    async def test(reader: Reader, left: list[Reader]) -> None:
        task = asyncio.create_task(reader.get())
        await asyncio.sleep(0)
        task.cancel()
        asyncio.get_running_loop().call_soon(reader.put, 0, output(1))  # comes while the task is being cancelled
        with pytest.raises(asyncio.CancelledError):
            await task
        assert tokens(await reader.get()) == [(0, (1,))]
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(reader.get(), 0.01)
        asyncio.get_running_loop().call_soon(reader.put, 1, output(2))
        assert tokens(await reader.get()) == [(1, (2,))]

    on_loop(test)


def test_a_closed_reader_leaves_once_and_keeps_nothing() -> None:
    async def test(reader: Reader, left: list[Reader]) -> None:
        reader.put(0, output(1))
        reader.close()
        reader.close()
        reader.put(0, output(2))
        assert left == [reader] and not reader._unread

    on_loop(test)
