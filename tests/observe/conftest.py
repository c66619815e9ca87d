"""Spans, log lines and metrics of a server over a database of the test file."""

import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from likewise.observe import logs
from tests.server.conftest import app, client, shared, shared_settings

__all__ = ["app", "client", "shared", "shared_settings"]

Samples = dict[str, float]


@pytest.fixture(scope="session")
def exporter() -> InMemorySpanExporter:
    """Keeps the spans of this process: OpenTelemetry takes one provider in a process's life."""
    keeping = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(keeping))
    trace.set_tracer_provider(provider)
    return keeping


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Callable[[], list[ReadableSpan]]:
    """Gives the spans that ended since the test began, in that order."""
    exporter.clear()
    return lambda: list(exporter.get_finished_spans())


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Gives what was logged since, debugging lines included."""
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    logs.configure("debug", stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:], root.level = handlers, level


async def scraped(client: httpx2.AsyncClient) -> Samples:
    """The samples of GET /metrics by name and labels."""
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    rows = re.findall(r"^(\w+(?:\{.*\})?) (\S+)$", answer.text, re.MULTILINE)
    return {name: float(value) for name, value in rows}


def risen(before: Samples, after: Samples) -> Samples:
    """What is more than it was."""
    return {name: value - before.get(name, 0.0) for name, value in after.items() if value > before.get(name, 0.0)}
