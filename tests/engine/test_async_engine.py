"""The engine thread: every accepted request ends, whoever goes away first."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress

import pytest

from llmserve.engine import AsyncEngine, EngineCore, Grammar, RequestOutput, SamplingParams, fold
from llmserve.engine import async_engine as module
from llmserve.engine.plan.grammar_spec import CompiledGrammar, Compiler
from llmserve.engine.reader import MAX_UNREAD
from llmserve.errors import ContextLengthError, EngineError, QueueFullError, RequestError
from tests.fakes import FakeExecutor, FakeGrammar, make_core, run_alone


class SlowExecutor(FakeExecutor):
    """Takes a while over each step; holds still while `gate` is closed."""

    pause = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        self.gate = threading.Event()
        self.gate.set()

    def execute(self, plan):  # type: ignore[no-untyped-def]
        self.gate.wait(10)
        time.sleep(self.pause)
        return super().execute(plan)


def long(**params: object) -> SamplingParams:
    return SamplingParams(temperature=0.0, **params)


def serve(
    test: Callable[[AsyncEngine, EngineCore], Awaitable[None]],
    executor: FakeExecutor | None = None,
    grammars: Compiler | None = None,
    **limits: int,
) -> None:
    """Run a coroutine against a started engine; check that it stops and closes its executor."""
    before = set(threading.enumerate())

    async def run() -> None:
        core = make_core(executor or SlowExecutor(max_model_len=256, num_pages=256), **limits)
        engine = AsyncEngine(lambda: core, grammars)
        assert not engine.is_alive
        await engine.start()
        try:
            await asyncio.wait_for(test(engine, core), 20)
        finally:
            await asyncio.wait_for(engine.stop(), 20)
        assert core.executor.closed and not engine.is_alive and not engine._streams  # type: ignore[attr-defined]

    asyncio.run(run())
    assert not [t for t in set(threading.enumerate()) - before if t.name == "llmserve-engine"]


async def collect(engine: AsyncEngine, prompt: list[int], params: SamplingParams) -> RequestOutput:
    return fold([output async for output in engine.generate(prompt, params)])


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def idle(engine: AsyncEngine) -> bool:
    stats = engine.stats()
    return stats.num_running == stats.num_waiting == 0 and stats.num_available_pages == stats.num_pages


def test_many_at_once_give_what_they_give_alone() -> None:
    async def test(engine: AsyncEngine, core: EngineCore) -> None:
        prompts = [[i, i + 1, 3] for i in range(20)]
        replies = await asyncio.gather(*(collect(engine, p, long(max_tokens=9)) for p in prompts))
        for prompt, reply in zip(prompts, replies, strict=True):
            alone = run_alone(prompt, long(max_tokens=9), max_model_len=256, vocab_size=64, eos_token_ids=frozenset())
            assert reply.finished and (reply.deltas[0].token_ids, reply.deltas[0].text) == (alone.token_ids, alone.text)
        assert idle(engine) and engine.stats().finished["length"] == 20

    serve(test)


def test_refusals_come_before_the_first_item() -> None:
    async def test(engine: AsyncEngine, core: EngineCore) -> None:
        for prompt, error in (([], RequestError), ([99], RequestError), ([1] * 256, ContextLengthError)):
            with pytest.raises(error):
                await anext(engine.generate(prompt, long()))
        assert engine.is_alive and not engine._streams

    serve(test)


def test_closing_the_stream_aborts_within_a_step() -> None:
    async def test(engine: AsyncEngine, core: EngineCore) -> None:
        stream = engine.generate([1, 2, 3], long())
        await anext(stream)
        steps = core.executor.steps  # type: ignore[attr-defined]
        await stream.aclose()
        await until(lambda: idle(engine))
        assert core.executor.steps <= steps + 3 and engine.stats().finished["abort"] == 1  # type: ignore[attr-defined]
        await until(lambda: not engine._streams)

    serve(test)


def test_a_cancelled_reader_aborts() -> None:
    async def test(engine: AsyncEngine, core: EngineCore) -> None:
        task = asyncio.create_task(collect(engine, [1, 2, 3], long()))
        await until(lambda: engine.stats().num_generated_tokens > 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: idle(engine))

    serve(test)


def test_a_reader_cancelled_before_its_first_token_aborts() -> None:
    async def test(engine: AsyncEngine, core: EngineCore) -> None:
        core.executor.gate.clear()  # type: ignore[attr-defined]
        task = asyncio.create_task(collect(engine, [1, 2, 3], long()))
        await asyncio.sleep(0.01)
        task.cancel()
        core.executor.gate.set()  # type: ignore[attr-defined]
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: idle(engine) and not engine._streams)
        assert engine.stats().finished["abort"] == 1

    serve(test)


def test_the_queue_is_bounded() -> None:
    async def test(engine: AsyncEngine, core: EngineCore) -> None:
        core.executor.gate.clear()  # type: ignore[attr-defined]
        tasks = [asyncio.create_task(collect(engine, [i], long(max_tokens=3))) for i in range(5)]
        await asyncio.sleep(0.01)
        core.executor.gate.set()  # type: ignore[attr-defined]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(r) for r in results].count(QueueFullError) == 2
        assert sum(isinstance(r, RequestOutput) for r in results) == 3

    serve(test, max_num_seqs=1, max_waiting=2)


def test_the_death_of_the_thread_reaches_every_reader_and_later_ones() -> None:
    async def run() -> None:
        core = make_core(FakeExecutor(die_after=3))
        engine = AsyncEngine(lambda: core)
        await engine.start()
        results = await asyncio.gather(*(collect(engine, [i], long()) for i in range(6)), return_exceptions=True)
        assert [type(r) for r in results] == [EngineError] * 6
        assert "the device fell off the bus" in str(results[0])
        assert not engine.is_alive and engine.dead_reason is not None and core.executor.closed  # type: ignore[attr-defined]
        with pytest.raises(EngineError, match="fell off the bus"):
            await anext(engine.generate([1], long()))
        await engine.stop()

    asyncio.run(asyncio.wait_for(run(), 20))


def test_what_arrived_before_the_death_is_read_before_the_error() -> None:
    async def run() -> None:
        core = make_core(FakeExecutor(die_after=3))
        engine = AsyncEngine(lambda: core)
        await engine.start()
        tokens = 0
        with pytest.raises(EngineError):
            async for output in engine.generate([1], long()):
                tokens += len(output.deltas[0].token_ids)
                await until(lambda: engine.dead_reason is not None)
        assert tokens == 3

    asyncio.run(asyncio.wait_for(run(), 20))


def test_start_raises_what_the_factory_raised() -> None:
    async def run() -> None:
        def factory() -> EngineCore:
            raise MemoryError("no room for the weights")

        engine = AsyncEngine(factory)
        with pytest.raises(EngineError, match="not been started"):
            await anext(engine.generate([1], long()))
        with pytest.raises(MemoryError, match="no room"):
            await engine.start()
        await asyncio.sleep(0)
        assert not engine.is_alive and "no room" in (engine.dead_reason or "")
        with pytest.raises(EngineError, match="no room"):
            await anext(engine.generate([1], long()))
        await engine.stop()

    asyncio.run(asyncio.wait_for(run(), 20))


def test_the_core_is_built_stepped_and_closed_in_one_thread_that_is_not_the_loops() -> None:
    seen: list[int] = []

    class Watched(FakeExecutor):
        def execute(self, plan):  # type: ignore[no-untyped-def]
            seen.append(threading.get_ident())
            return super().execute(plan)

        def close(self) -> None:
            seen.append(threading.get_ident())

    async def run() -> None:
        def factory() -> EngineCore:
            seen.append(threading.get_ident())
            return make_core(Watched())

        engine = AsyncEngine(factory)
        await engine.start()
        await collect(engine, [1], long(max_tokens=3))
        await engine.stop()

    asyncio.run(asyncio.wait_for(run(), 20))
    assert len(seen) == 5 and len(set(seen)) == 1 and seen[0] != threading.get_ident()


def test_a_slow_reader_gets_joined_deltas_and_bounded_memory() -> None:
    async def test(engine: AsyncEngine, core: EngineCore) -> None:
        outputs, most = [], 0
        stream = engine.generate([1, 2], long(max_tokens=200))
        outputs.append(await anext(stream))
        [(held, _)] = engine._streams.values()
        while not idle(engine):
            await asyncio.sleep(0.002)
            most = max(most, len(held._unread))
        assert most <= MAX_UNREAD
        outputs += [o async for o in stream]
        assert len(outputs) <= 3
        alone = run_alone([1, 2], long(max_tokens=200), max_model_len=256, vocab_size=64, eos_token_ids=frozenset())
        whole = fold(outputs)
        assert (whole.deltas[0].token_ids, whole.deltas[0].text) == (alone.token_ids, alone.text)

    serve(test)


def test_one_reader_takes_several_requests_and_leaves_them_all() -> None:
    async def test(engine: AsyncEngine, core: EngineCore) -> None:
        prompts = [[1, 2], [3], [4, 5, 6]]
        reader = engine.open(prompts, long(max_tokens=9))
        outputs: dict[int, list[RequestOutput]] = {0: [], 1: [], 2: []}
        while not all(its and its[-1].finished for its in outputs.values()):
            for request, output in await reader.get():
                outputs[request].append(output)
        for prompt, its in zip(prompts, outputs.values(), strict=True):
            alone = run_alone(prompt, long(max_tokens=9), max_model_len=256, vocab_size=64, eos_token_ids=frozenset())
            assert fold(its).deltas[0].token_ids == alone.token_ids
        reader.close()
        assert engine.stats().finished["abort"] == 0
        reader = engine.open(prompts, long())
        await reader.get()
        reader.close()
        await until(lambda: idle(engine) and not engine._streams)
        assert engine.stats().finished["abort"] == 3

    serve(test)


def test_stop_aborts_what_is_open_and_refuses_newcomers() -> None:
    async def run() -> None:
        executor = SlowExecutor(max_model_len=4096, num_pages=4096)
        core = make_core(executor, max_num_seqs=2)
        engine = AsyncEngine(lambda: core)
        await engine.start()
        endless = [asyncio.create_task(collect(engine, [i], long(n=i))) for i in (1, 2)]  # one of them waits in part
        await until(lambda: engine.stats().num_running == 2 and engine.stats().num_waiting == 1)
        executor.gate.clear()
        stopping = asyncio.create_task(engine.stop())
        await asyncio.sleep(0)
        assert not engine.is_alive
        with pytest.raises(EngineError, match="shutting down"):
            await anext(engine.generate([1], long()))
        executor.gate.set()
        await stopping
        reasons = [delta.finish_reason for task in endless for delta in (await task).deltas]
        assert reasons == ["abort"] * 3 and core.stats().num_available_pages == 4096
        with pytest.raises(EngineError, match="stopped"):
            await anext(engine.generate([1], long()))
        await engine.stop()

    asyncio.run(asyncio.wait_for(run(), 20))


def test_an_idle_engine_sleeps() -> None:
    async def test(engine: AsyncEngine, core: EngineCore) -> None:
        await collect(engine, [1], long(max_tokens=2))
        waits = []
        original = core.has_work
        core.has_work = lambda: waits.append(1) or original()  # type: ignore[method-assign]
        before = time.process_time()
        await asyncio.sleep(0.3)
        assert len(waits) <= 1, "on a busy machine the thread may not have been asleep yet"
        assert time.process_time() - before < 0.15

    serve(test)


def test_the_loop_is_called_once_per_step_whatever_the_number_of_streams() -> None:
    async def test(engine: AsyncEngine, core: EngineCore) -> None:
        calls = []
        post = engine._post
        engine._post = lambda *args: calls.append(1) or post(*args)  # type: ignore[method-assign]
        await asyncio.gather(*(collect(engine, [i], long(max_tokens=8)) for i in range(4)))
        assert len(calls) <= core.executor.steps  # type: ignore[attr-defined]

    serve(test, SlowExecutor(num_pages=64))


BOUND = long(max_tokens=5, grammar=Grammar("regex", "a", "guided_regex"))


class Compiling:
    """A compiler whose results come when the test says so."""

    def __init__(self) -> None:
        self.futures: list[Future[CompiledGrammar]] = []

    def submit(self, grammar: Grammar) -> Future[CompiledGrammar]:
        self.futures.append(Future())
        return self.futures[-1]

    def close(self) -> None:
        for future in self.futures:
            future.cancel()


def test_the_engine_goes_on_while_a_grammar_is_compiled() -> None:
    compiler = Compiling()

    async def test(engine: AsyncEngine, core: EngineCore) -> None:
        waiting = asyncio.create_task(collect(engine, [1], BOUND))
        assert (await collect(engine, [2], long(max_tokens=9))).finished
        assert not waiting.done() and not core.scheduler.requests
        compiler.futures[0].set_result(FakeGrammar(64, None, 3))
        reply = await waiting
        alone = run_alone(
            [1], BOUND, max_model_len=256, vocab_size=64, eos_token_ids=frozenset(), grammar=FakeGrammar(64, None, 3)
        )
        assert reply.deltas[0].token_ids == alone.token_ids

    serve(test, grammars=compiler)


def test_a_grammar_that_takes_too_long_or_fails_takes_its_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPILE_SECONDS", 0.05)
    compiler = Compiling()

    async def test(engine: AsyncEngine, core: EngineCore) -> None:
        with pytest.raises(RequestError, match="not compiled within") as caught:
            await collect(engine, [1], BOUND)
        assert caught.value.param == "guided_regex"
        failing = asyncio.create_task(collect(engine, [1], BOUND))
        await until(lambda: len(compiler.futures) == 2)
        compiler.futures[1].set_exception(RequestError("it is no grammar"))
        with pytest.raises(RequestError, match="it is no grammar"):
            await failing
        leaving = asyncio.create_task(collect(engine, [1], BOUND))
        await until(lambda: len(compiler.futures) == 3)
        leaving.cancel()
        with suppress(asyncio.CancelledError):
            await leaving
        assert not compiler.futures[2].cancelled(), "others may be waiting for it"
        assert not engine._streams
        assert (await collect(engine, [2], long(max_tokens=3))).finished

    serve(test, grammars=compiler)


def test_a_request_whose_grammar_is_compiled_when_the_engine_stops_ends() -> None:
    compiler = Compiling()

    async def test(engine: AsyncEngine, core: EngineCore) -> None:
        waiting = asyncio.create_task(collect(engine, [1], BOUND))
        await until(lambda: bool(compiler.futures))
        await engine.stop()
        with pytest.raises(EngineError):
            await waiting

    serve(test, grammars=compiler)
