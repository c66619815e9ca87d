"""What a server tells of its Redis: degraded, never away."""

from collections.abc import AsyncIterator

import httpx2
import pytest

import likewise
from likewise.embedding.embedder import Embedder
from likewise.server.app import create_app
from likewise.settings import Settings
from likewise.testing import FakeProvider
from likewise.testing.redis import RedisProcess
from tests.observe.conftest import scraped
from tests.patience import until
from tests.server.conftest import BASE

SECRET = "xyzzy-password"


@pytest.fixture
async def away(redis_program: str) -> AsyncIterator[RedisProcess]:
    """A Redis that is not started."""
    server = RedisProcess()
    yield server
    await server.kill()


@pytest.fixture
async def calling(away: RedisProcess, settings: Settings) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a server whose settings name it."""
    url = away.url.replace("redis://", f"redis://:{SECRET}@")
    chosen = settings.model_copy(update={"redis_url": url})
    embedder = Embedder(chosen, providers={chosen.model: lambda spec: FakeProvider()})
    async with likewise.open(chosen, embedder=embedder) as opened:
        transport = httpx2.ASGITransport(create_app(opened, chosen))
        async with httpx2.AsyncClient(transport=transport, base_url=BASE) as client:
            await until(lambda: embedder.cache_fault is not None)
            await until(embedder.is_ready)
            yield client


async def test_a_redis_that_is_away_degrades_and_comes_back(calling: httpx2.AsyncClient, away: RedisProcess) -> None:
    # Given
    notes = "/api/v1/collections/notes"
    assert (await calling.post("/api/v1/collections", json={"name": "notes"})).status_code == 201
    # When
    stored = await calling.post(f"{notes}/records", json=[{"id": "a", "text": "the pump fails"}])
    found = await calling.post(f"{notes}/search", json={"query": "the pump"})
    loose, strict = await calling.get("/readyz"), await calling.get("/readyz?strict=true")
    seen = await scraped(calling)
    # Then
    assert (stored.status_code, found.status_code) == (200, 200)
    assert (loose.status_code, loose.json()["status"]) == (200, "degraded")
    assert loose.json()["parts"]["cache"] == "Redis cannot be reached; vectors are made anew."
    assert strict.status_code == 503
    assert seen['likewise_cache_up{tier="redis"}'] == 0
    assert seen['likewise_cache_errors_total{kind="away"}'] >= 0
    assert SECRET not in loose.text + strict.text

    # When
    async with away.running():

        async def ready() -> bool:
            # It asks for no password: that the URL has one is a fault, too.
            return "rights" in str((await calling.get("/readyz")).json()["parts"]["cache"])

        # Then
        await until(ready)


async def test_without_a_redis_nothing_is_said_of_one(calling: httpx2.AsyncClient, client: httpx2.AsyncClient) -> None:
    assert (await client.get("/readyz")).json()["parts"]["cache"] is None
    assert not [name for name in await scraped(client) if name.startswith("likewise_cache_up")]
