"""A canary in every text, query, id and payload: it comes back to its sender, and appears nowhere else."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from opentelemetry.sdk.trace import ReadableSpan

import likewise
from likewise.embedding.embedder import Embedder
from likewise.errors import ModelUnavailable
from likewise.settings import Settings
from likewise.testing import FakeProvider, ScriptedReply, Upstream
from tests.conftest import Opener
from tests.patience import until
from tests.search.rerankers import at
from tests.server.conftest import calling

CANARY = "zwitscher"
NDJSON = {"content-type": "application/x-ndjson"}
COLLECTIONS = "/api/v1/collections"


def told(spans: list[ReadableSpan], lines: list[dict[str, Any]]) -> str:
    return json.dumps([json.loads(span.to_json()) for span in spans]) + json.dumps(lines)


async def test_no_text_reaches_logs_spans_or_metrics(
    open_likewise: Opener,
    provider: FakeProvider,
    spans: Callable[[], list[ReadableSpan]],
    lines: Callable[[], list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with open_likewise() as lw, calling(lw) as client:
        # When: all goes well
        await client.post(COLLECTIONS, json={"name": CANARY})
        records = [{"id": f"{CANARY}/1", "text": CANARY, "payload": {CANARY: CANARY}, "parent": CANARY}]
        await client.post(f"{COLLECTIONS}/{CANARY}/records", json=records)
        await lw.wait_until_embedded(CANARY)
        for mode in ("hybrid", "dense", "lexical"):
            asked = {"query": CANARY, "mode": mode, "filters": {CANARY: {"$eq": CANARY}}}
            answer = await client.post(f"{COLLECTIONS}/{CANARY}/search", json=asked)
            assert CANARY in answer.text
        await client.get(f"{COLLECTIONS}/{CANARY}/records/{CANARY}/1?{CANARY}={CANARY}")
        # And when: requests are wrong
        await client.post(f"{COLLECTIONS}/{CANARY}/records", json=[{"id": CANARY, CANARY: CANARY}])
        await client.post(f"{COLLECTIONS}/{CANARY}/records", content=f"{{{CANARY}\n{CANARY}", headers=NDJSON)
        await client.post(f"{COLLECTIONS}/{CANARY}/search", json={"query": CANARY, "filters": {CANARY: {"$x": 1}}})
        await client.post(f"{COLLECTIONS}/{CANARY}/search", content=CANARY, headers={"content-type": CANARY})
        await client.request(CANARY.upper(), f"/{CANARY}", headers={"traceparent": CANARY, "authorization": CANARY})
        # And when: parts fail, with the text in their own words
        provider.poison = lambda text: "poisoned" in text
        await client.post(f"{COLLECTIONS}/{CANARY}/records", json=[{"id": "2", "text": f"poisoned {CANARY}"}])
        await client.post(f"{COLLECTIONS}/{CANARY}/search", json={"query": f"poisoned {CANARY}", "mode": "dense"})
        await until(lambda: set_aside(lines))
        provider.fail = ModelUnavailable(code="away")
        await client.post(f"{COLLECTIONS}/{CANARY}/search", json={"query": f"another {CANARY}", "mode": "dense"})
        for error in (ValueError(CANARY), psycopg.errors.UniqueViolation(f"Key ({CANARY})"), KeyError(CANARY)):
            monkeypatch.setattr(lw.runtime.searcher, "_answer", raising(error))
            failed = await client.post(f"{COLLECTIONS}/{CANARY}/search", json={"query": CANARY})
            assert failed.status_code == 500
        page = (await client.get("/metrics")).text
    # Then
    assert {"worker", "embed", "search", "model"} <= {span.name for span in spans()}
    assert any(span.attributes and "error.type" in span.attributes for span in spans())
    assert "text_failed" in {line["event"] for line in lines()}
    for place in (told(spans(), lines()), page):
        assert CANARY not in place.lower()


async def test_no_text_of_a_reranker_does(
    settings: Settings,
    tmp_path: Path,
    spans: Callable[[], list[ReadableSpan]],
    lines: Callable[[], list[dict[str, Any]]],
) -> None:
    # Given a reranker at an address
    async with Upstream().running() as upstream:
        chosen = settings.model_copy(update=at(tmp_path, upstream.url))
        embedder = Embedder(chosen, providers={chosen.model: lambda spec: FakeProvider()})
        async with likewise.open(chosen, embedder=embedder) as lw, calling(lw) as client:
            await lw.collection("notes").add([{"id": "1", "text": f"{CANARY} one"}])
            asked = {"query": CANARY, "documents": [f"{CANARY} two", f"{CANARY} three"]}
            search = {"query": CANARY, "rerank": True}
            # When all goes well, and when it says what it was sent, or fails at it
            for reply in (None, *(ScriptedReply.of({CANARY: CANARY}, status) for status in (200, 400, 404))):
                upstream.always = reply
                answers = [
                    await client.post("/v1/rerank", json=asked),
                    await client.post(f"{COLLECTIONS}/notes/search", json=search),
                ]
                assert all(answer.status_code == 200 or CANARY not in answer.text for answer in answers)
            await client.post("/v1/rerank", json=asked | {"model": CANARY})
            page = (await client.get("/metrics")).text
    # Then
    assert {"rerank", "reranker", "provider"} <= {span.name for span in spans()}
    for place in (told(spans(), lines()), page):
        assert CANARY not in place.lower()


def raising(error: Exception) -> Callable[..., Any]:
    async def broken(*_: Any) -> None:
        raise error

    return broken


async def set_aside(lines: Callable[[], list[dict[str, Any]]]) -> bool:
    await asyncio.sleep(0)
    return any(line["event"] == "text_failed" for line in lines())
