"""What Prometheus may know of a server, under the names that vLLM's dashboards use (with our prefix).

Counts and gauges are read off the engine when somebody asks; only times are measured here, where clients feel them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ..engine import AsyncEngine, EngineStats, RequestOutput
from ..errors import EngineError

router = APIRouter()

_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_NEXT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5)
_WHOLE = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """One app's metrics, in a registry of their own."""

    def __init__(self, engine: AsyncEngine, model: str) -> None:
        self._engine, self._model = engine, model
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self.first_token = self._histogram("time_to_first_token", "Seconds from a prompt to its first token.", _FIRST)
        self.inter_token = self._histogram("inter_token_latency", "Seconds between the tokens of a choice.", _NEXT)
        self.end_to_end = self._histogram("e2e_request_latency", "Seconds from a prompt to its last token.", _WHOLE)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """The engine's numbers, as Prometheus' registry asks for them; none while there is no engine."""
        try:
            stats = self._engine.stats()
        except EngineError:
            return
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

    def stopwatch(self) -> Stopwatch:
        return Stopwatch(self)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        family = Histogram(
            f"llmserve:{name}_seconds", help_text, ["model_name"], buckets=buckets, registry=self._registry
        )
        return family.labels(self._model)


class Stopwatch:
    """Times one prompt from its making."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._start = time.perf_counter()
        self._last: dict[int, float] = {}  # by choice

    def tick(self, output: RequestOutput) -> None:
        """Note that this output has come."""
        now = time.perf_counter()
        for delta in output.deltas:
            if not delta.token_ids:
                continue
            if delta.index in self._last:
                each = (now - self._last[delta.index]) / len(delta.token_ids)
                for _ in delta.token_ids:
                    self._metrics.inter_token.observe(each)
            elif not self._last:
                self._metrics.first_token.observe(now - self._start)
            self._last[delta.index] = now
        if output.finished:
            self._metrics.end_to_end.observe(now - self._start)


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
