"""Prefill and decode speed of the engine core, stepped directly: real scheduler, real kernels, no server.

Prompts are random token ids. Those of a prefill are new each time, so nothing of it is computed less than once; those
that a decode begins with are the same each time, so that the prefix cache has most of them after the first. Figures
are medians; the time inside the compiled step is told apart from the host's by a stopwatch around the runner's call.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from ..engine import SamplingParams
from ..llm import LLM
from .host import Bystanders, load_average, memory_mib, prepare, provenance
from .plan import BATCHES, CONTEXT, LONG_CONTEXT, PREFILL, STEPS, Timing

PREFILLS_KEPT = 8  # of each length, before the pages of what a decode begins with are taken


class EngineBench:
    """One loaded model, and the two things to time on it. The peers' benchmark times the same two."""

    def __init__(self, model: str | None, *, threads: int | None = None, long: bool = False, **options: Any) -> None:
        longest = (LONG_CONTEXT if long else max(PREFILL)) + 2 * STEPS + 16
        room = longest + sum(BATCHES) * (CONTEXT + 2 * STEPS + 16) + PREFILLS_KEPT * sum(PREFILL)
        began = time.perf_counter()
        self.llm = LLM(model, num_threads=threads, max_model_len=longest, num_pages=-(-room // 16), **options)
        self.core = self.llm._core
        self._random = random.Random(0)
        self._ids = 0
        self._compiled = 0.0
        runner: Any = self.llm._runner
        for name in runner.COMPILED:
            setattr(runner, name, self._watched(getattr(runner, name)))
        self.decode(1, 16, 1)  # starts the thread pool and makes the first pages resident
        self.ready_seconds = time.perf_counter() - began

    def prefill(self, tokens: int) -> Timing:
        """One prompt of that many tokens, up to its first answer token."""
        self._add(self._random, tokens, 1)
        return self._timed(tokens, self.core.has_work)

    def decode(self, batch: int, context: int = CONTEXT, steps: int = STEPS) -> Timing:
        """`batch` sequences that each have `context` tokens already, one token each per step."""
        names = [self._add(random.Random(f"{context} {number}"), context, 1 << 20) for number in range(batch)]
        waiting = set(names)
        while waiting:
            waiting -= {output.request_id for output in self.core.step()}
        left = iter(range(steps))
        timing = self._timed(batch * steps, lambda: next(left, None) is not None)
        for name in names:
            self.core.abort(name)
        return timing

    def _add(self, source: random.Random, tokens: int, answer: int) -> str:
        self._ids += 1
        prompt = source.choices(range(self.core.executor.vocab_size), k=tokens)
        params = SamplingParams(temperature=0.0, max_tokens=answer, ignore_eos=True)
        self.core.add_request(f"bench-{self._ids}", prompt, params)
        return f"bench-{self._ids}"

    def _timed(self, tokens: int, more: Callable[[], bool]) -> Timing:
        steps, self._compiled = 0, 0.0
        began = time.perf_counter()
        while more():
            self.core.step()
            steps += 1
        return Timing(steps, tokens, time.perf_counter() - began, self._compiled)

    def _watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args)
            finally:
                self._compiled += time.perf_counter() - began

        return step


def measure(
    model: str | None,
    *,
    quant: str | None = None,
    device: str | None = "auto",
    arch: str | None = None,
    threads: int | None = None,
    repetitions: int = 3,
    long: bool = False,
) -> dict[str, Any]:
    """Figures by name, in the order in which to print them. `long` adds decoding at a context of 4096 tokens.

    Raises LLMServeError as loading the model does.
    """
    found = provenance(threads)
    seconds, notes = prepare(model, quant=quant, device=device, arch=arch)
    bench = EngineBench(model, quant=quant, device=device, arch=arch, threads=threads, long=long)
    compiled, runner = bench.llm.compiled, bench.llm._runner
    figures: dict[str, Any] = {
        "model": model or compiled.name,
        "scheme": compiled.scheme,
        "platform": compiled.platform,
        **found,
        "threads": runner.num_threads,
        "prepare_seconds": seconds,
        "prepare_notes": notes,
        "ready_seconds": bench.ready_seconds,
    }
    others = Bystanders()
    for tokens in PREFILL:
        prefills = [bench.prefill(tokens) for _ in range(repetitions)]
        figures[f"prefill_{tokens}_tok_s"] = median(t.rate for t in prefills)
    decodes = {f"decode_b{batch}": (batch, CONTEXT) for batch in BATCHES}
    if long:
        decodes[f"decode_b1_ctx{LONG_CONTEXT}"] = (1, LONG_CONTEXT)
    for name, (batch, context) in decodes.items():
        timings = [bench.decode(batch, context) for _ in range(repetitions)]
        figures[f"{name}_tok_s"] = median(t.rate for t in timings)
        figures[f"{name}_step_ms"] = median(t.seconds / t.steps for t in timings) * 1e3
        figures[f"{name}_host_ms"] = median(t.host_ms for t in timings)
    # Above a few hundredths, the figures are those of a machine that had other things to do.
    figures["cores_used_by_others"] = others.cores()
    return {**figures, **memory_mib(), "load_average_after": load_average()}
