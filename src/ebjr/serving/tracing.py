"""OpenTelemetry traces of a server: requests, their waits, and their batches.

Needs the extra ``otel``; only ``ebjr serve --otel`` imports it.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

from ebjr.errors import needs
from ebjr.serving.events import Batched, Observer

with needs("otel", "tracing"):
    from opentelemetry import trace
    from opentelemetry.propagate import extract
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

CARRIED = ("traceparent", "tracestate")


class Tracing(Observer):
    """Spans of requests, and of the batches that answer them.

    A request's span is a child of the span in its ``traceparent``. Its own children are, for each
    model that was asked, ``student wait``, the time in the queue, and ``student batch``, the batch
    shared with other requests; likewise for the teacher.
    """

    def __init__(self, provider: TracerProvider) -> None:
        from ebjr import __version__

        self._provider = provider
        self._tracer = provider.get_tracer("ebjr", __version__)
        self._epoch = time.time_ns() - time.perf_counter_ns()
        self.handlers = {Batched: self._batched}

    @classmethod
    def to_collector(cls, name: str) -> Self:
        """Send spans over OTLP, configured by the variables ``OTEL_EXPORTER_OTLP_...``."""
        with needs("otel", "tracing"):
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        about = Resource.create({"ebjr.model": name})
        if "unknown_service" in str(about.attributes.get("service.name", "")):
            about = about.merge(Resource({"service.name": "ebjr"}))
        provider = TracerProvider(resource=about)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    @contextmanager
    def request(
        self, name: str, headers: Mapping[str, str], about: Mapping[str, str]
    ) -> Iterator[None]:
        """Open a request's span; `headers`, in lower case, may name its parent."""
        with self._tracer.start_as_current_span(
            name,
            context=extract({key: headers[key] for key in CARRIED if key in headers}),
            kind=trace.SpanKind.SERVER,
            attributes=dict(about),
        ):
            yield

    def current(self) -> Any:
        """Return the current request's context for its ticket; None if it is not sampled."""
        span = trace.get_current_span()
        sampled = span.get_span_context().trace_flags.sampled
        return trace.set_span_in_context(span) if sampled else None

    def _batched(self, batch: Batched) -> None:
        began = self._epoch + round(1e9 * batch.began)
        ended = began + round(1e9 * batch.seconds)
        about = {"ebjr.rows": batch.rows, "ebjr.requests": len(batch.tickets)}
        for ticket, waited in zip(batch.tickets, batch.waited, strict=True):
            if ticket.trace is not None:
                came = began - round(1e9 * waited)
                self._span(f"{batch.stage} wait", ticket.trace, came, began, {})
                self._span(f"{batch.stage} batch", ticket.trace, began, ended, about)

    def close(self) -> None:
        """Send the remaining spans."""
        self._provider.shutdown()

    def _span(self, name: str, context: Any, start: int, end: int, about: dict[str, int]) -> None:
        span = self._tracer.start_span(name, context=context, start_time=start, attributes=about)
        span.end(end)
