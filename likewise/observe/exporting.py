"""Sends spans by OTLP over HTTP; needs the extra `otel`. OpenTelemetry's own variables say where, how much and how."""

import os

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from likewise.observe.version import program_version

# The end of the process waits for one try to send what is left, so this is less than OpenTelemetry's 10 s.
SEND_SECONDS = 3.0
_TIMEOUTS = ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT")
_UNNAMED = "unknown_service"


def start() -> None:
    """Record spans from now on, and send them beside the work; what is left is sent when the process ends."""
    provider = TracerProvider(resource=resource())
    seconds = None if any(map(os.environ.get, _TIMEOUTS)) else SEND_SECONDS
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(timeout=seconds)))
    trace.set_tracer_provider(provider)


def resource() -> Resource:
    """Return the sender: `likewise`, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES say otherwise."""
    known = Resource.create({SERVICE_VERSION: program_version()})
    if str(known.attributes.get(SERVICE_NAME, _UNNAMED)).startswith(_UNNAMED):
        return known.merge(Resource({SERVICE_NAME: "likewise"}))
    return known
