"""Whether the server says truly how it is."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from psycopg.sql import SQL

from likewise.db import pool
from likewise.errors import DatabaseUnavailable
from likewise.health import Health
from likewise.library import Likewise
from likewise.server.app import create_app
from tests.server.conftest import BASE

WELL = Health(database=None, schema=None, model=None, oldest_waiting=0.0)


@pytest.fixture
def health(shared: Likewise, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Sets what the library says about itself."""

    def answer(**faults: str) -> None:
        async def said() -> Health:
            return replace(WELL, **faults)

        monkeypatch.setattr(shared, "health", said)

    return answer


async def test_a_live_process_says_so(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/livez")).json() == {"status": "alive"}
    assert (await client.head("/livez")).status_code == 200


@pytest.mark.parametrize("path", ["/readyz", "/healthz"])
async def test_ready(client: httpx2.AsyncClient, health: Any, path: str) -> None:
    health()
    answer = await client.get(path)
    assert (answer.status_code, answer.json()["status"]) == (200, "ready")


@pytest.mark.parametrize("path", ["/readyz", "/healthz"])
async def test_without_the_model_it_is_degraded(client: httpx2.AsyncClient, health: Any, path: str) -> None:
    health(model="It is absent.")
    loose, strict = await client.get(path), await client.get(path, params={"strict": "true"})
    assert (loose.status_code, loose.json()["status"]) == (200, "degraded")
    assert loose.json()["parts"]["model"] == "It is absent."
    assert (strict.status_code, strict.json()["code"]) == (503, "not_ready")
    assert 1 <= int(strict.headers["retry-after"]) <= 120


@pytest.mark.parametrize("part", ["database", "schema"])
async def test_without_a_usable_database_it_is_not_ready(client: httpx2.AsyncClient, health: Any, part: str) -> None:
    health(**{part: "It is gone."})
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    assert answer.json()["parts"][part] == "It is gone."
    assert answer.headers["content-type"] == "application/problem+json"


async def test_while_stopping_it_is_not_ready(client: httpx2.AsyncClient, app: FastAPI) -> None:
    app.state.draining = True
    try:
        answer = await client.get("/readyz")
    finally:
        app.state.draining = False
    assert (answer.status_code, answer.json()["code"]) == (503, "stopping")


async def test_a_database_that_hangs_does_not_hang_the_probe(
    client: httpx2.AsyncClient, shared: Likewise, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hangs() -> Health:
        await asyncio.sleep(60)
        return WELL

    monkeypatch.setattr(shared, "health", hangs)
    monkeypatch.setattr("likewise.server.operations.PROBE_SECONDS", 0.05)
    assert (await client.get("/readyz")).status_code == 503


async def test_the_first_page_says_what_is_here(client: httpx2.AsyncClient) -> None:
    page = (await client.get("/")).json()
    assert page["name"] == "likewise"
    for link in page["links"].values():
        assert (await client.get(link)).status_code == 200


@pytest.mark.parametrize("sqlstate", ["53100", "58030", "XX001"])
async def test_a_fault_of_the_storage_counts_until_a_write_succeeds(open_likewise: Any, sqlstate: str) -> None:
    # Given: nothing in the background that would write
    raises = SQL(f"DO $$ BEGIN RAISE EXCEPTION 'disk full' USING ERRCODE = '{sqlstate}'; END $$")
    async with open_likewise(worker=False) as idle, calling(create_app(idle, idle.settings)) as client:
        notes, tenant = idle.collection("notes"), await idle.tenant()
        await notes.create()
        with pytest.raises(DatabaseUnavailable):
            async with idle.runtime.pool.tenant(tenant) as tx:
                await tx.execute(raises)
        # When: reading heals nothing
        await notes.stats()
        broken = await client.get("/readyz")
        await notes.add([{"id": "1", "text": "there is room again"}], wait=False)
        healed = await client.get("/readyz")
    # Then
    assert (broken.status_code, broken.json()["code"]) == (503, "not_ready")
    assert sqlstate in broken.json()["parts"]["database"]
    assert healed.status_code == 200


async def test_a_fault_of_the_storage_expires(open_likewise: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given: a balancer that sends no writes to a server that is not ready
    raises = SQL("DO $$ BEGIN RAISE EXCEPTION 'disk full' USING ERRCODE = '53100'; END $$")
    async with open_likewise(worker=False) as idle, calling(create_app(idle, idle.settings)) as client:

        async def fail() -> str:
            with pytest.raises(DatabaseUnavailable) as failed:
                async with idle.runtime.pool.tenant(await idle.tenant()) as tx:
                    await tx.execute(raises)
            return failed.value.detail

        # When
        said = await fail()
        broken = await client.get("/readyz")
        monkeypatch.setattr(pool, "FAULT_SECONDS", 0.0)
        expired = await client.get("/readyz")
        monkeypatch.undo()
        await fail()
        again = await client.get("/readyz")
    # Then
    assert "The disk of the database is full. Free some space on it" in said
    assert [answer.status_code for answer in (broken, expired, again)] == [503, 200, 503]


def calling(app: FastAPI) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=BASE)


async def test_busy_connections_are_no_fault(
    client: httpx2.AsyncClient, shared: Likewise, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    monkeypatch.setattr("likewise.health.ASK_SECONDS", 0.2)
    pool, tenant = shared.runtime.pool, await shared.tenant()
    async with AsyncExitStack() as stack:
        for _ in range(shared.settings.database_connections):
            await stack.enter_async_context(pool.tenant(tenant))
        # When
        answer = await client.get("/readyz")
    # Then
    assert answer.status_code == 200
    assert answer.json()["parts"]["database"] is None
