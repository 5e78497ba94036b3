"""The engine thread, its inbox and its outbox: an `EngineCore` for asyncio.

One thread builds the core (TVM's worker threads belong to the thread that starts them), steps it and is the only one to
touch it. The event loop only appends to the inbox and reads outputs; it never waits for a lock held during a step.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import uuid
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from dataclasses import dataclass

from ..errors import EngineError, LLMServeError, NotReadyError
from .core import EngineCore, EngineStats
from .plan.grammar_spec import CompiledGrammar, Compiler, Grammar
from .plan.outputs import RequestOutput
from .plan.sampling_params import SamplingParams
from .reader import Reader

logger = logging.getLogger(__name__)

COMPILE_SECONDS = 10.0  # that a request waits for its grammar


@dataclass(frozen=True, slots=True)
class _Add:
    request_id: str
    prompt_ids: Collection[int]
    params: SamplingParams
    grammar: CompiledGrammar | None


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str


_Result = tuple[str, "RequestOutput | LLMServeError"]  # of a request, by its id


class AsyncEngine:
    """Serves `generate` calls of one event loop, the one that `start` is awaited in."""

    def __init__(self, core_factory: Callable[[], EngineCore], grammars: Compiler | None = None) -> None:
        """`core_factory` is called once, in the engine thread, which also closes what it made. Requests with a grammar
        are refused without `grammars`, which is closed with the engine."""
        self._core_factory = core_factory
        self._grammars = grammars
        self._core: EngineCore | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._exited: asyncio.Future[None] | None = None
        self._died: asyncio.Future[str] | None = None
        self._thread: threading.Thread | None = None
        self._streams: dict[str, tuple[Reader, int]] = {}  # unfinished requests: their reader, their number there
        self._wakeup = threading.Condition()
        self._inbox: list[_Add | _Abort] = []
        self._stopping = False
        self._dead_reason: str | None = None

    async def start(self) -> None:
        """Start the thread and wait until the core is built. Raises what the factory raised."""
        if self._loop is not None:
            raise EngineError("The engine has been started already.")
        self._loop = asyncio.get_running_loop()
        self._exited, self._died = self._loop.create_future(), self._loop.create_future()
        ready: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="llmserve-engine", daemon=True)
        self._thread.start()
        await ready

    async def stop(self) -> None:
        """Refuse new requests, abort the open ones, and end the thread."""
        if self._exited is None or self._thread is None:
            return
        with self._wakeup:
            self._stopping = True
            self._wakeup.notify()
        await asyncio.shield(self._exited)
        if self._grammars is not None:
            self._grammars.close()
        self._thread.join()  # at once: setting `_exited` is the last thing that it does

    async def generate(
        self, prompt_ids: Collection[int], params: SamplingParams
    ) -> AsyncGenerator[RequestOutput, None]:
        """The outputs of one request, ending with a finished one.

        Raises RequestError before the first item if the request cannot be served, and EngineError whenever the engine
        is not there or goes away. Closing or cancelling the generator aborts the request. A reader slower than the
        engine gets several steps' deltas joined.
        """
        reader = self.open([prompt_ids], params)
        try:
            finished = False
            while not finished:
                for _, output in await reader.get():
                    finished = output.finished
                    yield output
        finally:
            reader.close()

    def open(self, prompts: Sequence[Collection[int]], params: SamplingParams) -> Reader:
        """Make a request of each prompt, and read the outputs of all of them; each ends with a finished one.

        Raises EngineError if the engine is not there. That a request cannot be served, or that the engine has gone
        away, is raised where its outputs are read.
        """
        self._check_open()
        reader = Reader([uuid.uuid4().hex for _ in prompts], self._abort_all)
        if params.grammar is None:
            self._add(reader, prompts, params, None)
        else:
            reader.opening = asyncio.create_task(self._add_compiled(reader, prompts, params, params.grammar))
        return reader

    def stats(self) -> EngineStats:
        """Numbers read while the engine runs: each is right, together they may be a step apart."""
        if self._core is None:
            raise EngineError("The engine has not been started.")
        return self._core.stats()

    @property
    def max_model_len(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        if self._core is None:
            raise EngineError("The engine has not been started.")
        return self._core.max_model_len

    @property
    def capacity(self) -> int:
        """Sequences that may run and wait together; a request beyond them is refused."""
        if self._core is None:
            raise EngineError("The engine has not been started.")
        return self._core.scheduler.config.max_num_seqs + self._core.scheduler.config.max_waiting

    @property
    def is_alive(self) -> bool:
        """Whether `generate` may be called."""
        return self._core is not None and self._dead_reason is None and not self._stopping

    @property
    def dead_reason(self) -> str | None:
        """Why the engine is gone; None while it is not, and before it has started."""
        return self._dead_reason

    async def death(self) -> str:
        """Wait until the engine has died, and return why. One that is stopped has not."""
        if self._died is None:
            raise EngineError("The engine has not been started.")
        return await asyncio.shield(self._died)

    # On the event loop

    def _add(
        self,
        reader: Reader,
        prompts: Sequence[Collection[int]],
        params: SamplingParams,
        grammar: CompiledGrammar | None,
    ) -> None:
        self._streams |= {request_id: (reader, i) for i, request_id in enumerate(reader.request_ids)}
        self._submit([_Add(i, prompt, params, grammar) for i, prompt in zip(reader.request_ids, prompts, strict=True)])

    async def _add_compiled(
        self, reader: Reader, prompts: Sequence[Collection[int]], params: SamplingParams, grammar: Grammar
    ) -> None:
        try:
            compiled = await self._compiled(grammar)
            self._check_open()  # it may have gone meanwhile
            self._add(reader, prompts, params, compiled)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            asyncio.get_running_loop().call_soon(reader.put, 0, error)
        except BaseException as error:  # a panic of the grammar library
            told = EngineError(f"The grammar could not be compiled: {type(error).__name__}: {error}.")
            asyncio.get_running_loop().call_soon(reader.put, 0, told)

    def _abort_all(self, reader: Reader) -> None:
        """Abort a reader's unfinished requests. They stay in `_streams` until the engine thread is done with them."""
        self._submit([_Abort(i) for i in reader.request_ids if i in self._streams])

    async def _compiled(self, grammar: Grammar) -> CompiledGrammar | None:
        if self._grammars is None:
            return None  # the core will say what that means
        work = asyncio.wrap_future(self._grammars.submit(grammar))
        work.add_done_callback(lambda done: done.cancelled() or done.exception())  # or asyncio logs it as not retrieved
        await asyncio.wait({work}, timeout=COMPILE_SECONDS)  # which leaves it running when this request is cancelled
        if not work.done():
            # What a grammar may cost is bounded, so the machine is busy, or others come first; and it goes on.
            raise NotReadyError(
                f"The grammar was not compiled within {COMPILE_SECONDS:g} seconds, since the server is busy. Please "
                "try again in a moment: it may be ready then.",
                param=grammar.param,
                code="grammar_not_ready",
            )
        if work.cancelled():
            raise EngineError("The engine is shutting down.")
        return work.result()

    def _check_open(self) -> None:
        if self._dead_reason is not None:
            raise EngineError(self._dead_reason)
        if self._stopping:
            raise EngineError("The engine is shutting down.")
        if self._core is None:
            raise EngineError("The engine has not been started.")

    def _submit(self, jobs: Sequence[_Add | _Abort]) -> None:
        with self._wakeup:
            self._inbox += jobs
            self._wakeup.notify()

    def _deliver(self, results: list[_Result]) -> None:
        for request_id, item in results:
            known = self._streams.get(request_id)
            if known is None:
                logger.error("an output of a request that has no reader: %s", request_id)
                continue
            reader, request = known
            if not isinstance(item, RequestOutput) or item.finished:
                del self._streams[request_id]
            reader.put(request, item)

    def _finish_dead(self, reason: str, has_died: bool) -> None:
        """The thread has ended: fail what is open, and let `stop` and `death` return."""
        self._dead_reason = reason
        if has_died and self._died is not None and not self._died.done():
            self._died.set_result(reason)
        self._deliver([(request_id, EngineError(reason)) for request_id in list(self._streams)])
        if self._exited is not None and not self._exited.done():
            self._exited.set_result(None)

    # In the engine thread

    def _run(self, ready: asyncio.Future[None]) -> None:
        try:
            core = self._core_factory()
        except BaseException as error:
            self._post(self._finish_dead, f"The engine could not start: {error}", False)
            self._post(_settle, ready, error)
            return
        self._core = core
        self._post(_settle, ready, None)
        reason, has_died = "The engine has been stopped.", False
        try:
            self._step_until_stopped(core)
        except BaseException as error:
            logger.exception("The engine thread has died")
            reason, has_died = f"The engine has died: {type(error).__name__}: {error}", True
        finally:
            try:
                core.close()
            except Exception:
                logger.exception("The executor could not be closed")
            self._post(self._finish_dead, reason, has_died)

    def _step_until_stopped(self, core: EngineCore) -> None:
        results: list[_Result] = []
        while True:
            busy = core.has_work()
            if not busy:
                results = self._hand_over(results)
            if self._inbox or not busy:  # else there is nothing to wait for, and no need of the lock
                with self._wakeup:
                    if not busy:
                        self._wakeup.wait_for(lambda: self._inbox or self._stopping)
                    jobs, self._inbox = self._inbox, []
                for job in jobs:
                    results += self._apply(core, job)
            if self._stopping:
                rest = [core.abort(request_id) for request_id in list(core.scheduler.requests)]
                self._hand_over(results + [(output.request_id, output) for output in rest if output])
                return
            plan = core.plan()
            # The loop reads the last step's outputs while this thread computes the next; any earlier, both would want
            # the interpreter at once, and this thread would wait.
            self._hand_over(results)
            results = [(output.request_id, output) for output in core.compute(plan)]

    def _hand_over(self, results: list[_Result]) -> list[_Result]:
        """Give results to the event loop; returns what is left of them: none."""
        if results:
            self._post(self._deliver, results)
        return []

    def _apply(self, core: EngineCore, job: _Add | _Abort) -> list[_Result]:
        if isinstance(job, _Abort):
            output = core.abort(job.request_id)
            return [(job.request_id, output)] if output else []
        try:
            core.add_request(job.request_id, job.prompt_ids, job.params, job.grammar)
        except LLMServeError as error:
            return [(job.request_id, error)]
        except BaseException as error:  # of this request; the others go on
            logger.exception("a request could not be added")
            return [(job.request_id, EngineError(f"The request failed: {type(error).__name__}: {error}."))]
        return []

    def _post(self, callback: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # if the loop is closed, nothing waits for it
            self._loop.call_soon_threadsafe(callback, *args)


def _settle(future: asyncio.Future[None], error: BaseException | None) -> None:
    if future.done():  # its awaiter was cancelled
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
