"""A request that names its model has segments of that model: a collection of its own, which another does not search."""

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

import likewise
from likewise.embedding.embedder import Embedder
from likewise.server.app import create_app
from likewise.settings import Settings
from likewise.testing import FakeProvider
from tests.jobs import ended_over_http

pytestmark = pytest.mark.usefixtures("whole")

# Each by the name that it is asked for with, and the one that answers have.
SIX = ("minilm-l6-v2", "sentence-transformers/all-MiniLM-L6-v2")
TWELVE = ("minilm-l12-v2", "sentence-transformers/all-MiniLM-L12-v2")
COLD = "the pump fails when it is cold"


@pytest.fixture
async def client(settings: Settings, provider: FakeProvider) -> AsyncIterator[httpx2.AsyncClient]:
    """Of a server that allows a second model, whose vectors are in a space of their own."""
    allowing = settings.model_copy(update={"models_allowed": (TWELVE[0],)})
    second = FakeProvider(space="another")
    embedder = Embedder(allowing, providers={SIX[0]: lambda spec: provider, TWELVE[0]: lambda spec: second})
    async with likewise.open(allowing, embedder=embedder) as lw:
        transport = httpx2.ASGITransport(create_app(lw, allowing))
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield client


async def stored(client: httpx2.AsyncClient, path: str, model: str | None, **body: Any) -> dict[str, Any]:
    """The ended job of a segment, a batch or a document, for the model if one is named."""
    answer = await client.post(path, json={"asset_id": "manual", **body, **({"model": model} if model else {})})
    assert answer.status_code in (200, 202), answer.text
    return await ended_over_http(client, answer.json()["job_id"])


async def found(client: httpx2.AsyncClient, model: str | None, query: str = COLD) -> tuple[str, set[str], set[str]]:
    """The model that an answer names, those that its hits name, and the hits' segments."""
    body = {"query_text": query, "limit": 100, **({"model": model} if model else {})}
    answer = await client.post("/vectors/search", json=body)
    assert answer.status_code == 200, answer.text
    payloads = [hit["payload"] for hit in answer.json()["results"]]
    return answer.json()["query_model"], {one["model"] for one in payloads}, {one["segment_id"] for one in payloads}


async def test_each_model_has_segments_of_its_own(client: httpx2.AsyncClient) -> None:
    # Given segments of the default model, of the same under its other name, and of a second one
    jobs = [
        await stored(client, "/vectors/embed", None, segment_id="six", text=COLD),
        await stored(client, "/vectors/embed", SIX[1], segment_id="six too", text=COLD),
        await stored(client, "/vectors/embed", TWELVE[0], segment_id="twelve", text=COLD),
        await stored(client, "/vectors/embed/batch", TWELVE[1], segments=[{"segment_id": "batch", "text": COLD}]),
        await stored(client, "/vectors/documents", TWELVE[0], text=COLD),
    ]
    assert [job["result"]["model"] for job in jobs] == [SIX[1]] * 2 + [TWELVE[1]] * 3
    # Then each is found with its own model and not with the other, and the answers say which that is
    six = (SIX[1], {SIX[1]}, {"six", "six too"})
    twelve = (TWELVE[1], {TWELVE[1]}, {"twelve", "batch", "chunk_0"})
    assert [await found(client, model) for model in (None, *SIX)] == [six] * 3
    assert [await found(client, model) for model in TWELVE] == [twelve] * 2
    # And they are two collections
    names = {one["name"] for one in (await client.get("/api/v1/collections")).json()["collections"]}
    assert names == {f"segments:{SIX[0]}", f"segments:{TWELVE[0]}"}


async def test_the_same_segment_of_two_models_is_two_and_an_asset_is_deleted_from_both(
    client: httpx2.AsyncClient,
) -> None:
    # Given
    jobs = [await stored(client, "/vectors/embed", model, segment_id="s", text=COLD) for model in (SIX[0], TWELVE[0])]
    assert len({job["result"]["point_id"] for job in jobs}) == 2
    # When
    assert (await client.delete("/vectors/asset/manual")).status_code == 204
    # Then
    for name, answered in (SIX, TWELVE):
        assert await found(client, name) == (answered, set(), set())
        stats = (await client.get(f"/api/v1/collections/segments:{name}/stats")).json()
        assert (stats["records"], stats["contents"], stats["vectors"]) == (0, 0, 0)


async def test_a_model_that_is_not_allowed_is_refused_and_nothing_is_stored(client: httpx2.AsyncClient) -> None:
    body = {"asset_id": "a", "segment_id": "s", "text": COLD, "query_text": COLD, "model": "mpnet-base"}
    for path in ("/vectors/embed", "/vectors/search"):
        answer = await client.post(path, json=body)
        assert (answer.status_code, "mpnet" in answer.text) == (422, False)
    assert (await client.get("/api/v1/collections")).json()["collections"] == []
