"""The host's part of a decode step, measured inside an engine that serves streams as the server does.

The async engine runs in its own thread, with detokenization, and a reader on the event loop takes each stream. The
engine thread's part is what passes between one compiled call's end and the next one's beginning: updating, text,
handing over, scheduling, arrays. Choosing tokens is part of the call. The event loop's part is the CPU time of its
thread, which runs beside the engine; writing HTTP is not in it.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from ..engine import AsyncEngine, EngineCore, SamplingParams
from ..llm import LLM
from .plan import CONTEXT, STEPS

_Marks = list[tuple[float, float]]
"""Moments, and the CPU seconds that the event loop's thread had used by then."""
_SETTLING = 3  # steps before the first that counts


@dataclass(frozen=True)
class HostWork:
    """Means over decode steps of a full batch, in seconds: from one step's beginning to the next, of that in the
    compiled call, and of the event loop's CPU time."""

    step: float
    compiled: float
    loop: float

    @property
    def engine(self) -> float:
        """Seconds per step that the engine's thread was not in the compiled call."""
        return self.step - self.compiled

    @property
    def share(self) -> float:
        """Of the step, all of the host's work: as if none of the event loop's ran beside the engine's."""
        return (self.engine + self.loop) / self.step


class _Stopwatch:
    """Begin, end and number of tokens of each call of the compiled step; none begins before `go` is set."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, float, int]] = []
        self.go = threading.Event()

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def step(token_ids: Any, *others: Any) -> Any:
            self.go.wait()
            began = time.perf_counter()
            result = call(token_ids, *others)
            self.calls.append((began, time.perf_counter(), int(token_ids.shape[0])))
            return result

        return step


def measure(
    model: str | None,
    batch: int,
    *,
    context: int = CONTEXT,
    steps: int = STEPS,
    temperature: float = 0.0,
    threads: int | None = None,
    **options: Any,
) -> HostWork:
    """Decode with `batch` streams for `steps` steps and look at the host. `options` are those of LLM.

    Loads the model in a thread of its own and gives it back. Raises LLMServeError as loading the model does.
    """
    watch = _Stopwatch()
    # Those that are read first answer already while the others' prompts are read.
    answer = steps + _SETTLING + 2 + batch * context // 128
    longest = context + answer + 8

    def core() -> EngineCore:  # in the engine's thread, to which TVM's workers will belong
        llm = LLM(model, num_threads=threads, max_model_len=longest, num_pages=batch * -(-longest // 16) + 8, **options)
        runner: Any = llm._runner
        for name in runner.COMPILED:
            setattr(runner, name, watch.around(getattr(runner, name)))
        return llm._core

    params = SamplingParams(temperature=temperature, seed=0, max_tokens=answer, ignore_eos=True)
    loop_seconds = _run(_read_all(core, batch, context, params, watch.go.set))
    return _summed(watch.calls, batch, loop_seconds)


def _run(work: Coroutine[Any, Any, _Marks]) -> _Marks:
    """In an event loop like the server's."""
    try:
        import uvloop
    except ImportError:  # there is none for Windows
        return asyncio.run(work)
    return uvloop.run(work)


async def _read_all(
    core: Callable[[], EngineCore], batch: int, context: int, params: SamplingParams, go: Callable[[], None]
) -> _Marks:
    """Reads all streams to their ends; returns the marks at the beginning, and at each output of the first. `go` is
    called when all have been asked for: a small model might have answered the first by then."""
    engine = AsyncEngine(core)
    await engine.start()
    marks: _Marks = [(time.perf_counter(), time.thread_time())]

    async def read(number: int) -> None:
        prompt = random.Random(f"{context} {number}").choices(range(10, 250), k=context)
        async for _ in engine.generate(prompt, params):
            if number == 0:
                marks.append((time.perf_counter(), time.thread_time()))

    try:
        reading = asyncio.gather(*(read(number) for number in range(batch)))
        await asyncio.sleep(0)  # until they wait
        go()
        await reading
    finally:
        go()
        await engine.stop()
    return marks


def _summed(calls: list[tuple[float, float, int]], batch: int, marks: _Marks) -> HostWork:
    """From the steps in which every sequence decoded one token; the first few of them only warm up."""
    # A prompt's last rest may have as many tokens as the batch, so the run that counts is the last one.
    last = max(i for i, call in enumerate(calls) if call[2] == batch)
    first = last
    while first > 0 and calls[first - 1][2] == batch:
        first -= 1
    decoding = calls[first : last + 1][_SETTLING:]
    count = len(decoding) - 1
    began, ended = decoding[0][0], decoding[-1][0]
    step = (ended - began) / count
    within = [mark for mark in marks if began <= mark[0] <= ended]
    # A loop that is late takes several outputs at once; one that is very late had all of them together.
    (start, before), *_, (end, after) = within if len(within) > 1 else marks
    loop = (after - before) / ((end - start) / step)
    return HostWork(step, sum(end - begin for begin, end, _ in decoding[:-1]) / count, loop)
