"""Spans: which there are, what belongs to what, and how they are switched on."""

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from opentelemetry.sdk.trace import ReadableSpan

from likewise.embedding.provider import Lane
from likewise.errors import Invalid
from likewise.library import Likewise
from likewise.observe.logs import REQUEST_ID
from likewise.observe.steps import WorkerStep
from likewise.observe.tracing import Span
from likewise.testing import FakeProvider
from tests.conftest import Opener
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
NOTES = "/api/v1/collections/notes"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

Spans = Callable[[], list[ReadableSpan]]


def only(spans: list[ReadableSpan], name: str) -> tuple[ReadableSpan, dict[str, Any]]:
    (found,) = [span for span in spans if span.name == name]
    return found, dict(found.attributes or {})


async def test_a_search_is_a_request_a_search_and_an_embedding(
    client: httpx2.AsyncClient, shared: Likewise, spans: Spans
) -> None:
    # Given: a caller that traces
    await shared.wait_until_embedded("notes")
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "abc"}
    # When
    await client.post(f"{NOTES}/search", json={"query": "the pump", "limit": 1}, headers=headers)
    # Then
    request, of_request = only(spans(), "POST /api/v1/collections/{name}/search")
    search, of_search = only(spans(), "search")
    embed, of_embed = only(spans(), "embed")
    assert request.parent is not None
    assert format(request.parent.span_id, "016x") == PARENT
    assert {format(span.context.trace_id, "032x") for span in (request, search, embed)} == {TRACE}
    assert search.parent is not None
    assert search.parent.span_id == request.context.span_id
    assert embed.parent is not None
    assert embed.parent.span_id == search.context.span_id
    assert of_request["http.response.status_code"] == 200
    assert of_request["http.route"] == "/api/v1/collections/{name}/search"
    assert of_request["likewise.request_id"] == "abc"
    assert of_search == {
        "likewise.mode": "hybrid",
        "likewise.plan": "scan",
        "likewise.hits": 1,
        "likewise.degraded": False,
    }
    assert of_embed["likewise.texts"] == 1
    assert of_embed["likewise.tokens"] == 4
    assert of_embed["likewise.cached"] == 0


async def test_a_worker_has_spans_of_its_own(client: httpx2.AsyncClient, shared: Likewise, spans: Spans) -> None:
    # When
    await client.post(
        f"{NOTES}/records", json=[{"id": "w", "text": "a text for the worker"}], headers={"x-request-id": "who-asked"}
    )
    await shared.wait_until_embedded("notes")
    # Then
    request, _ = only(spans(), "POST /api/v1/collections/{name}/records")
    worker, of_worker = only(spans(), "worker")
    embed, _ = only(spans(), "embed")
    assert of_worker["likewise.contents"] == 1
    assert of_worker["likewise.request_ids"] == ("who-asked",)
    assert worker.context.trace_id != request.context.trace_id
    assert embed.context.trace_id == worker.context.trace_id


def test_a_claim_names_the_requests_whose_texts_are_in_it(spans: Spans, lines: Callable[[], Any]) -> None:
    # When
    with WorkerStep(3, ["one", None, "two", "one"]):
        pass
    # Then
    _, attributes = only(spans(), "worker")
    (line,) = [line for line in lines() if line["event"] == "claim_worked_on"]
    assert attributes["likewise.request_ids"] == ("one", "two")
    assert attributes["likewise.requests"] == 2
    assert (line["contents"], line["requests"], line["request_ids"]) == (3, 2, ["one", "two"])


def test_a_claim_of_many_requests_names_some(spans: Spans, lines: Callable[[], Any]) -> None:
    with WorkerStep(512, [f"request-{number}" for number in range(512)]):
        pass
    (line,) = [line for line in lines() if line["event"] == "claim_worked_on"]
    assert line["requests"] == 512
    assert len(line["request_ids"]) == 16


async def test_log_lines_name_the_trace(client: httpx2.AsyncClient, spans: Spans, lines: Callable[[], Any]) -> None:
    await client.get(NOTES, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    (line,) = [line for line in lines() if line["event"] == "request"]
    assert line["trace_id"] == TRACE


@pytest.mark.parametrize(
    "header", ["", "00", f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-xyz-01", "a" * 10_000, f"ff-{TRACE}-{PARENT}-01"]
)
async def test_a_malformed_trace_is_a_new_one(client: httpx2.AsyncClient, spans: Spans, header: str) -> None:
    answer = await client.get("/livez", headers={"traceparent": header})
    span, _ = only(spans(), "GET /livez")
    assert answer.status_code == 200
    assert span.parent is None


async def test_a_batch_belongs_to_its_own_request(
    open_likewise: Opener, provider: FakeProvider, spans: Spans, lines: Callable[[], Any]
) -> None:
    async with open_likewise(worker=False) as lw:
        await lw.embed(["so that the model is loaded"])
        provider.gate = asyncio.Event()
        provider.poison = lambda text: "poisoned" in text

        async def asked(request_id: str, text: str, lane: Lane) -> None:
            REQUEST_ID.set(request_id)
            with Span(request_id), contextlib.suppress(Invalid):
                await lw.embedder.embed(0, [text], lane=lane)

        # When: a batch waits until that of another request has ended
        first = asyncio.create_task(asked("first", "one", "interactive"))
        await asyncio.sleep(0.01)
        second = asyncio.create_task(asked("second", "poisoned", "bulk"))
        await asyncio.sleep(0.01)
        provider.gate.set()
        await asyncio.gather(first, second)
    # Then
    of_model = [span for span in spans() if span.name == "model" and (span.attributes or {}).get("error.type")]
    assert {span.context.trace_id for span in of_model} == {only(spans(), "second")[0].context.trace_id}
    (line,) = [line for line in lines() if line["event"] == "model_batch_failed"]
    assert line["request_id"] == "second"


# Switching it on, in processes of their own: OpenTelemetry takes one provider in a process's life.

ONE_SPAN = "from likewise.observe import tracing; print(tracing.configure())\nwith tracing.Span('one'): pass"
WITHOUT_EXTRA = "import sys; sys.modules['opentelemetry.sdk'] = sys.modules['opentelemetry.exporter'] = None\n"


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=ROOT,
        env=kept | environment | {"PYTHONPATH": str(ROOT)},
    )


@pytest.fixture
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """A place that takes spans: its address, and what came."""
    came: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", came
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("named", "service"), [({}, b"likewise"), ({"OTEL_SERVICE_NAME": "my-search"}, b"my-search")], ids=["own", "given"]
)
def test_a_named_collector_gets_the_spans(
    collector: tuple[str, list[tuple[str, bytes]]], named: dict[str, str], service: bytes
) -> None:
    address, came = collector
    done = run(ONE_SPAN, OTEL_EXPORTER_OTLP_ENDPOINT=address, **named)
    assert done.stdout == "True\n"
    ((path, body),) = came
    assert path == "/v1/traces"
    assert b"one" in body
    assert service in body


@pytest.mark.parametrize(
    "environment",
    [{}, {"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}],
    ids=["no address", "disabled", "no exporter"],
)
def test_without_an_address_nothing_is_sent(
    collector: tuple[str, list[tuple[str, bytes]]], environment: dict[str, str]
) -> None:
    address, came = collector
    named = {"OTEL_EXPORTER_OTLP_ENDPOINT": address} if environment else {}
    assert run(ONE_SPAN, **named, **environment).stdout == "False\n"
    assert came == []


def test_a_collector_that_is_away_keeps_nobody(tmp_path: Path) -> None:
    done = run(ONE_SPAN, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    assert done.stdout == "True\n"


def test_a_missing_extra_is_one_line_that_names_it() -> None:
    logged = "from likewise.observe import logs; logs.configure('info')\n"
    done = run(WITHOUT_EXTRA + logged + ONE_SPAN, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    assert done.stdout == "False\n"
    (line,) = done.stderr.splitlines()
    assert "pip install 'likewise[otel]'" in line
