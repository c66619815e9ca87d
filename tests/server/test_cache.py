"""What a server tells of its Redis: degraded, never away."""

from collections.abc import AsyncIterator

import httpx2
import pytest

import likewise
from likewise.embedding.caches import traffic
from likewise.embedding.embedder import Embedder
from likewise.server.app import create_app
from likewise.settings import Settings
from likewise.testing import FakeProvider
from likewise.testing.redis import PATIENT_SECONDS, RedisProcess
from tests.observe.conftest import risen, scraped
from tests.patience import until
from tests.server.conftest import BASE

SECRET = "xyzzy-password"
UP = 'likewise_cache_up{tier="redis"}'


@pytest.fixture
async def away(redis_program: str) -> AsyncIterator[RedisProcess]:
    """A Redis that is not started."""
    server = RedisProcess()
    yield server
    await server.kill()


@pytest.fixture
async def calling(
    away: RedisProcess, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a server whose settings name it, and that learns of its end from a question alone."""
    monkeypatch.setattr("likewise.embedding.caches.redis.ANSWER_SECONDS", PATIENT_SECONDS)
    monkeypatch.setattr(traffic, "HEARTBEAT_SECONDS", 1_000.0)
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
    # Then
    assert (stored.status_code, found.status_code) == (200, 200)
    assert (loose.status_code, loose.json()["status"]) == (200, "degraded")
    assert loose.json()["parts"]["cache"] == "Redis cannot be reached; vectors are made anew."
    assert strict.status_code == 503
    assert (await scraped(calling))[UP] == 0
    assert SECRET not in loose.text + strict.text

    # When
    async with away.running():
        # Then: it asks for no password, and that the URL has one is a fault, too
        await until(lambda: says_of_redis(calling, "rights"))

        # When
        await away.execute("CONFIG", "SET", "requirepass", SECRET)
        # Then
        await until(lambda: says_of_redis(calling, "None"))
        assert (await calling.get("/readyz?strict=true")).json()["status"] == "ready"
        assert (await scraped(calling))[UP] == 1

        # When
        before = await scraped(calling)
        await away.kill()
        found = await calling.post(f"{notes}/search", json={"query": "another pump"})

        # Then
        async def counted() -> bool:
            return risen(before, await scraped(calling)).get('likewise_cache_errors_total{kind="away"}', 0) >= 1

        assert found.status_code == 200
        await until(counted)


async def says_of_redis(client: httpx2.AsyncClient, word: str) -> bool:
    return word in str((await client.get("/readyz")).json()["parts"]["cache"])


async def test_without_a_redis_nothing_is_said_of_one(calling: httpx2.AsyncClient, client: httpx2.AsyncClient) -> None:
    """Not even where another server of the same process has one, whose counts it shows."""
    assert UP in await scraped(calling)
    assert UP not in await scraped(client)
    assert (await client.get("/readyz")).json()["parts"]["cache"] is None
