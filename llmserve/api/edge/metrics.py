"""Prometheus metrics of a server, under the names that vLLM's dashboards use (with our prefix).

Counts and gauges are read from the engine at each scrape; only what a single request has (times, sizes, a status) is
observed here, where clients feel it. Figures of single tokens are tallied without a library's locks.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from ...engine import AsyncEngine, EngineStats, RequestOutput, SamplingParams
from ...errors import EngineError
from .record import Record, current

router = APIRouter()

_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_NEXT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5)
_WHOLE = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
_TOKENS = tuple(m * 10**e for e in range(6) for m in (1, 2, 5))
_CHOICES = (1, 2, 5, 10, 20, 50, 100)


class Metrics:
    """One app's metrics, in a registry of their own."""

    def __init__(self, engine: AsyncEngine, model: str) -> None:
        self._engine, self._model = engine, model
        self._registry = CollectorRegistry()
        self._registry.register(self)
        made = self._histogram
        self.first_token = made("time_to_first_token_seconds", "From a prompt to its first token.", _FIRST)
        self.inter_token = Tally(_NEXT)
        self.mean_per_token = made(
            "request_time_per_output_token_seconds", "Between the tokens of a prompt's answer, on average.", _NEXT
        )
        self.end_to_end = made("e2e_request_latency_seconds", "From a prompt to its last token.", _WHOLE)
        self.queue_time = made("request_queue_time_seconds", "From a prompt to its first computation.", _WHOLE)
        self.prefill_time = made("request_prefill_time_seconds", "From there to the first token.", _WHOLE)
        self.decode_time = made("request_decode_time_seconds", "From the first token to the last.", _WHOLE)
        self.inference_time = made("request_inference_time_seconds", "From the first computation to the end.", _WHOLE)
        self.prompt_tokens = made("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self.generation_tokens = made("request_generation_tokens", "Tokens of a prompt's choices.", _TOKENS)
        self.max_tokens = made("request_params_max_tokens", "What prompts ask for at most, if they say.", _TOKENS)
        self.choices = made("request_params_n", "Choices that prompts ask for.", _CHOICES)
        self._requests = Counter(
            "llmserve:http_requests", "Answers by place and status.", ["route", "status"], registry=self._registry
        )

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Tallies, and the engine's numbers, as Prometheus' registry asks for them; none while there is no engine."""
        try:
            stats = self._engine.stats()
        except EngineError:
            return
        # The second is what the first was called before; dashboards have both.
        for name in ("inter_token_latency_seconds", "time_per_output_token_seconds"):
            histogram = HistogramMetricFamily(
                f"llmserve:{name}", "Between the tokens of a choice.", labels=["model_name"]
            )
            histogram.add_metric([self._model], self.inter_token.buckets(), self.inter_token.sum)
            yield histogram
        for name, help_text, value in _gauges(stats):
            gauge = GaugeMetricFamily(f"llmserve:{name}", help_text, labels=["model_name"])
            gauge.add_metric([self._model], value)
            yield gauge
        for name, help_text, count in _counters(stats):
            counter = CounterMetricFamily(f"llmserve:{name}", help_text, labels=["model_name"])
            counter.add_metric([self._model], count)
            yield counter
        finished = CounterMetricFamily(
            "llmserve:request_success", "Choices that have ended.", labels=["model_name", "finished_reason"]
        )
        for reason, count in stats.finished.items():
            finished.add_metric([self._model, reason], count)
        yield finished

    def describe(self) -> list[Metric]:
        """Nothing: the registry would otherwise ask an engine that has not started."""
        return []

    def stopwatch(self, prompt_ids: Sequence[int], params: SamplingParams) -> Stopwatch:
        """Times one prompt from now on; the request in whose context it is gets the figures too."""
        return Stopwatch(self, prompt_ids, params, current.get())

    def note(self, record: Record) -> None:
        """Count a request that has ended."""
        self._requests.labels(record.route or "none", str(record.status or 499)).inc()

    def _histogram(self, name: str, help_text: str, buckets: Sequence[float]) -> Histogram:
        family = Histogram(f"llmserve:{name}", help_text, ["model_name"], buckets=buckets, registry=self._registry)
        return family.labels(self._model)


class Tally:
    """A histogram that costs little to add to. Not for several threads.

    Attributes:
        sum: of all that was added.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds` are the buckets' upper ones, which belong to them, less the last bucket's, which has none."""
        self.sum = 0.0
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)

    def add(self, value: float, times: int) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self.sum += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """Each bucket's bound, and how many are not above it."""
        return list(zip([*map(str, map(float, self._bounds)), "+Inf"], accumulate(self._counts), strict=True))


class Stopwatch:
    """Times one prompt from its making."""

    def __init__(
        self, metrics: Metrics, prompt_ids: Sequence[int], params: SamplingParams, record: Record | None
    ) -> None:
        self._metrics, self._params, self._record = metrics, params, record
        self._prompt_tokens, self._tokens, self._choices = len(prompt_ids), 0, 0
        self._start = time.monotonic()
        self._first: float | None = None
        self._has_output = False
        self._last: dict[int, float] = {}  # by choice
        if record is not None:
            record.add_prompt(len(prompt_ids), params)

    def tick(self, output: RequestOutput) -> None:
        """Note that this output has come."""
        now = time.monotonic()
        if self._record is not None:
            self._record.add_output(output, first=not self._has_output)
        self._has_output = True
        for delta in output.deltas:
            count = len(delta.token_ids)
            if not count:
                continue
            self._tokens += count
            if (last := self._last.get(delta.index)) is not None:
                self._metrics.inter_token.add((now - last) / count, count)
            elif self._first is None:
                self._first = now
                self._metrics.first_token.observe(now - self._start)
            self._last[delta.index] = now
        if output.finished:
            self._finish(now, output.scheduled_at)

    def _finish(self, now: float, scheduled_at: float | None) -> None:
        metrics, params = self._metrics, self._params
        metrics.end_to_end.observe(now - self._start)
        metrics.prompt_tokens.observe(self._prompt_tokens)
        metrics.generation_tokens.observe(self._tokens)
        metrics.choices.observe(params.n)
        if params.max_tokens is not None:
            metrics.max_tokens.observe(params.max_tokens)
        if scheduled_at is not None:
            metrics.queue_time.observe(max(0.0, scheduled_at - self._start))
            metrics.inference_time.observe(now - scheduled_at)
            if self._first is not None:
                metrics.prefill_time.observe(self._first - scheduled_at)
        if self._first is not None:
            metrics.decode_time.observe(now - self._first)
            if self._tokens > len(self._last):
                metrics.mean_per_token.observe((now - self._first) * len(self._last) / (self._tokens - len(self._last)))


def _gauges(stats: EngineStats) -> Iterator[tuple[str, str, float]]:
    yield "num_requests_running", "Sequences that are being computed.", stats.num_running
    yield "num_requests_waiting", "Sequences that wait for room.", stats.num_waiting
    yield "kv_cache_usage_perc", "Share of the KV cache that is held by sequences; 1 is all.", stats.kv_cache_usage


def _counters(stats: EngineStats) -> Iterator[tuple[str, str, int]]:
    yield "prompt_tokens", "Prompt tokens of accepted requests.", stats.num_prompt_tokens
    yield "generation_tokens", "Tokens generated.", stats.num_generated_tokens
    yield "num_preemptions", "Sequences that had to start over for lack of pages.", stats.num_preemptions
    yield "prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", stats.prefix_queries
    yield "prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.prefix_hits


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    # Not by the shared dependency: its module imports this one.
    own: Metrics = request.app.state.serving.metrics
    return Response(own.text(), media_type=CONTENT_TYPE_LATEST)
