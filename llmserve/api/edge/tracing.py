"""OpenTelemetry spans, one for each request that asks the model for something, sent where the settings say.

The attributes are those of the semantic conventions for generative AI and for HTTP; prompts and answers are in none of
them. The libraries are an extra, and are imported only by servers that are told where to send spans.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from ... import __version__
from ...errors import ConfigError
from .record import Record

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
_EXPORT_SECONDS = 5.0


class Tracing:
    """Writes records down as spans, which are sent by a thread of their own."""

    def __init__(self, endpoint: str, model: str) -> None:
        """Raises ConfigError where the extra is not installed."""
        require()
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        exporter = make_exporter(endpoint)
        self._trace, self._model = trace, model
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, if set, win over the name given here.
        resource = Resource.create({"service.name": "llmserve", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("llmserve", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def note(self, record: Record, headers: Mapping[str, str]) -> None:
        """Write down a request that has ended. It belongs to the trace that its `traceparent` header names."""
        if record.method != "POST":  # no span for each health check
            return
        operation = _OPERATIONS.get(record.route or "")
        parent = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        span = self._tracer.start_span(
            f"{operation} {self._model}" if operation else f"{record.method} {record.route or ''}".strip(),
            context=self._propagator.extract(parent),
            kind=self._trace.SpanKind.SERVER,
            start_time=round(record.started_at * 1e9),
            attributes=self._attributes(record, operation),
        )
        if record.status >= 500 or record.status == 0:
            span.set_status(self._trace.StatusCode.ERROR)
        span.end(round((record.started_at + record.total_seconds) * 1e9))

    def _attributes(self, record: Record, operation: str | None) -> dict[str, Any]:
        known: dict[str, Any] = {
            "http.request.method": record.method,
            "http.route": record.route,
            "url.path": record.path.partition("?")[0],
            "http.response.status_code": record.status or None,
            "error.type": str(record.status) if record.status >= 400 else "client_left" if record.client_left else None,
            "client.address": record.client,
            "llmserve.request.id": record.id,
        }
        if operation:
            known |= {"gen_ai.operation.name": operation, "gen_ai.provider.name": "llmserve"}
            known |= {"gen_ai.request.model": self._model}
        if (params := record.params) is not None:
            known |= {
                "gen_ai.response.model": self._model,
                "gen_ai.request.max_tokens": params.max_tokens,
                "gen_ai.request.temperature": params.temperature,
                "gen_ai.request.top_p": params.top_p,
                "gen_ai.request.top_k": params.top_k or None,
                "gen_ai.request.frequency_penalty": params.frequency_penalty or None,
                "gen_ai.request.presence_penalty": params.presence_penalty or None,
                "gen_ai.request.seed": params.seed,
                "gen_ai.request.choice.count": params.n if params.n != 1 else None,
                "gen_ai.usage.input_tokens": record.prompt_tokens,
                "gen_ai.usage.output_tokens": record.completion_tokens,
                "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
                "gen_ai.response.finish_reasons": record.finish_reasons or None,
                # Not of the conventions for spans, but what vLLM writes, and dashboards look for.
                "gen_ai.latency.time_in_queue": record.queue_seconds,
                "gen_ai.latency.time_to_first_token": record.first_token_seconds,
                "gen_ai.latency.e2e": record.total_seconds,
            }
        return {name: value for name, value in known.items() if value is not None and _fits(value)}

    async def close(self) -> None:
        """Send what is left, for a few seconds at most."""
        await asyncio.get_running_loop().run_in_executor(None, self._provider.shutdown)


def require() -> None:
    """Raise ConfigError unless the libraries are there."""
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace.export  # noqa: F401
    except ImportError as error:
        raise ConfigError("otlp_endpoint needs OpenTelemetry: pip install 'llmserve[otel]'.") from error


def _fits(value: object) -> bool:
    return not isinstance(value, int) or abs(value) < 2**63  # the protocol's integers


def make_exporter(endpoint: str) -> Any:
    """The exporter, which sends spans over HTTP; tests replace it by one that keeps them."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint, timeout=_EXPORT_SECONDS)
