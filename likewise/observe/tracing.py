"""Spans by OpenTelemetry: the request, and within it embedding, searching and the worker's steps.

A span says how much and how long, never what: no texts, no queries, no ids of records, no messages of errors. While
nobody records, a span costs under a microsecond. `configure` has them recorded and sent, by OTLP over HTTP;
OpenTelemetry's own variables say where, how much and how.
"""

import os
from collections.abc import Mapping
from contextvars import Token
from types import TracebackType
from typing import Self

from opentelemetry import context, trace
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from likewise.observe.logs import get_logger
from likewise.observe.version import program_version

# Whoever runs it names where spans go by OpenTelemetry's own variables.
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
EXTRA = "pip install 'likewise[otel]'"
# The end of the process waits for one try to send what is left, so this is less than OpenTelemetry's 10 s.
SEND_SECONDS = 3.0
_TIMEOUTS = ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT")
_UNNAMED = "unknown_service"

_TRACER = trace.get_tracer("likewise", program_version())
_PROPAGATOR = TraceContextTextMapPropagator()

log = get_logger(__name__)


def configure() -> bool:
    """Send spans to where the environment says; False if it names no place, or the extra `otel` is not installed."""
    if not any(map(os.environ.get, ENDPOINTS)) or _is_off():
        return False
    try:
        _export()
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("opentelemetry"):
            raise
        log.warning("no_spans", reason=f"Sending spans needs an extra: {EXTRA}")
        return False
    return True


def _export() -> None:
    """Record spans from now on, and send them beside the work; what is left is sent when the process ends."""
    # Imported here: they are an extra.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    sender = Resource.create({SERVICE_VERSION: program_version()})
    if str(sender.attributes.get(SERVICE_NAME, _UNNAMED)).startswith(_UNNAMED):
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES do not say otherwise.
        sender = sender.merge(Resource({SERVICE_NAME: "likewise"}))
    provider = TracerProvider(resource=sender)
    seconds = None if any(map(os.environ.get, _TIMEOUTS)) else SEND_SECONDS
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(timeout=seconds)))
    trace.set_tracer_provider(provider)


class Span:
    """A span that is the current one while the block runs.

    Args:
        name: what is done, from a closed set.
        incoming: the headers of a request, which may name the trace that it belongs to.
    """

    __slots__ = ("_live", "_span", "_token")

    def __init__(
        self, name: str, *, kind: SpanKind = SpanKind.INTERNAL, incoming: Mapping[str, str] | None = None
    ) -> None:
        parent = _PROPAGATOR.extract(incoming) if incoming and "traceparent" in incoming else None
        # It is never entered itself: then it would record errors with their messages.
        self._span = _TRACER.start_span(name, parent, kind)
        # Without anybody who records there is none, nor a trace that it could belong to.
        self._live = self._span.get_span_context().is_valid
        self._token: Token[context.Context] | None = None

    def __enter__(self) -> Self:
        """Make it the current one, also where it is not sampled, so that what is below it is not either."""
        if self._live:
            self._token = context.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """End it; of an error it keeps the type."""
        if not self._live:
            return
        if error is not None:
            self.failed(type(error).__qualname__)
        self._span.end()
        if self._token is not None:
            context.detach(self._token)

    def set(self, **attributes: AttributeValue | None) -> None:
        """Add attributes; `__` in a name stands for a dot. Names without one begin with `likewise.`."""
        if self._live:
            for name, value in attributes.items():
                if value is not None:
                    self._span.set_attribute(name.replace("__", ".") if "__" in name else f"likewise.{name}", value)

    def rename(self, name: str) -> None:
        """Give it a name that was not known at its start."""
        if self._live:
            self._span.update_name(name)

    def failed(self, kind: str) -> None:
        """Mark it as failed, with the type of the error."""
        if self._live:
            self._span.set_attribute("error.type", kind)
            self._span.set_status(Status(StatusCode.ERROR))


def note(**attributes: AttributeValue) -> None:
    """Add attributes to the current span, whoever began it."""
    span = trace.get_current_span()
    if span.is_recording():
        for name, value in attributes.items():
            span.set_attribute(f"likewise.{name}", value)


def _is_off() -> bool:
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return disabled or os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() != "otlp"
