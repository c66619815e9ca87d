"""Document segments over HTTP: a server that stores and searches, a worker in a process of its own, a real model."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from likewise.testing import LiveServer, LiveWorker, open_folder
from tests.jobs import ended_over_http
from tests.patience import PATIENCE

COLD = "The pump fails when it is cold."
PARAPHRASE = "In low temperatures the pump breaks down."
OTHERS = (
    "Invoices are sent on the first of the month.",
    "The choir meets on Thursdays.",
    "Cats sleep most of the day.",
)


@pytest.fixture(scope="module")
async def client(real_models: Path) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the server, with the worker beside it."""
    folder = open_folder()
    environment = {
        "LIKEWISE_MODELS_DIR": str(real_models),
        "LIKEWISE_OFFLINE": "true",
        "LIKEWISE_EMBED_WORKER": "false",
    }
    try:
        async with (
            LiveServer(folder, environment).running() as server,
            LiveWorker(folder, environment).running(),
            httpx2.AsyncClient(base_url=server.url, timeout=PATIENCE) as client,
        ):
            yield client
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def embedded(client: httpx2.AsyncClient, body: dict[str, Any], path: str = "/vectors/embed") -> dict[str, Any]:
    """The job of a request, once it has ended."""
    accepted = await client.post(path, json=body)
    assert accepted.status_code in (200, 202), accepted.text
    told = await ended_over_http(client, accepted.json()["job_id"])
    assert told["status"] == "SUCCEEDED", told
    return told


async def found(client: httpx2.AsyncClient, query: str, **others: Any) -> list[dict[str, Any]]:
    answer = await client.post("/vectors/search", json={"query_text": query, **others})
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


async def test_a_text_is_found_by_itself_and_by_other_words(client: httpx2.AsyncClient) -> None:
    # Given
    batch = [{"segment_id": str(place), "text": text} for place, text in enumerate((COLD, *OTHERS))]
    body = {"asset_id": "manual", "segments": batch}
    job = await embedded(client, body, "/vectors/embed/batch")
    # When
    same, other = await found(client, COLD, asset_id="manual"), await found(client, PARAPHRASE, asset_id="manual")
    # Then
    assert (same[0]["payload"]["segment_id"], same[0]["score"] > 0.99) == ("0", True)
    assert other[0]["payload"]["segment_id"] == "0"
    assert 0.5 < other[0]["score"] < 0.99
    assert len(same) == len(other) == 4
    # And the same request is the same job
    again = await client.post("/vectors/embed/batch", json=body)
    assert (again.status_code, again.json()["job_id"]) == (200, job["job_id"])


async def test_a_segment_is_what_was_sent_last(client: httpx2.AsyncClient) -> None:
    # When it is A, B, A
    body = {"asset_id": "letters", "segment_id": "1"}
    jobs = [await embedded(client, body | {"text": text}) for text in (COLD, OTHERS[0], COLD)]
    # Then
    assert len({job["job_id"] for job in jobs}) == 3
    assert len({job["result"]["point_id"] for job in jobs}) == 1
    [hit] = await found(client, COLD, asset_id="letters")
    assert hit["score"] > 0.99
    assert hit["payload"]["job_id"] == jobs[-1]["job_id"]


async def test_a_long_text_is_cut_off_by_tokens_and_a_document_in_parts(client: httpx2.AsyncClient) -> None:
    long = f"{COLD} " * 100
    # When one text is too long for the model
    told = (await embedded(client, {"asset_id": "long", "segment_id": "1", "text": long}))["result"]
    # Then both numbers say so
    assert told["text_len"] == len(long)
    assert 0 < told["truncated_len"] < told["text_len"]
    assert told["tokens"] == 256
    assert told["truncated_tokens"] == 8 * 100 + 2 - 256
    # When it is sent as a document
    job = await embedded(client, {"asset_id": "document", "text": long}, "/vectors/documents")
    # Then every part was read whole
    parts = await found(client, COLD, asset_id="document", limit=100)
    assert len(parts) == job["result"]["total"] == job["result"]["succeeded"] > 3
    assert all(one["payload"]["text_len"] == one["payload"]["truncated_len"] for one in parts)
