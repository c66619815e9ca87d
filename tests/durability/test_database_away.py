"""A database that is away is said to be, at once from the second time on, and is found again when it is back."""

import asyncio
import errno
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

import likewise
from likewise.db import pool
from likewise.embedding.embedder import Embedder
from likewise.library import Likewise
from likewise.postgres.cluster import Cluster
from likewise.postgres.filelock import open_lock
from likewise.postgres.postmaster import postgres_processes
from likewise.postgres.server import EmbeddedServer
from likewise.server.app import create_app
from likewise.settings import load_settings
from likewise.testing import FakeProvider, LiveServer, open_folder
from tests.patience import PATIENCE, hears_signals, until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes through /proc")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A data folder that the user who runs Postgres may enter."""
    made = open_folder()
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
async def embedded(folder: Path) -> AsyncIterator[Likewise]:
    """A Likewise with a Postgres of its own and a collection."""
    settings = load_settings(data_dir=folder)
    embedder = Embedder(settings, providers={settings.model: lambda spec: FakeProvider()})
    async with likewise.open(settings, embedder=embedder) as opened:
        await opened.collection("pumps").create()
        yield opened


@pytest.fixture
async def client(embedded: Likewise) -> AsyncIterator[httpx2.AsyncClient]:
    """Calls its HTTP API."""
    transport = httpx2.ASGITransport(create_app(embedded, embedded.settings))
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as calling:
        yield calling


@pytest.fixture
def send(folder: Path) -> Iterator[Callable[[signal.Signals], None]]:
    """Sends a signal to every process of its Postgres; at the end those that are stopped go on."""

    def sent(number: signal.Signals) -> None:
        for pid in postgres_processes(folder / "postgres" / "data", folder / "postgres" / "running"):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    yield sent
    sent(signal.SIGCONT)


async def stats(client: httpx2.AsyncClient) -> httpx2.Response:
    return await client.get("/api/v1/collections/pumps/stats")


async def gauge(client: httpx2.AsyncClient, name: str) -> float:
    page = (await client.get("/metrics")).text
    return float(next(line for line in page.splitlines() if line.startswith(f"likewise_{name} ")).split()[1])


async def test_a_database_that_hangs_is_away_and_not_busy(
    client: httpx2.AsyncClient, send: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given more connections than the work in the background takes
    async def are_idle() -> bool:
        await asyncio.gather(*(stats(client) for _ in range(24)))
        return await gauge(client, 'pool_connections{state="idle"}') >= 4

    await until(are_idle)
    monkeypatch.setattr(pool, "POOL_TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(pool, "LOOK_SECONDS", 1.0)
    send(signal.SIGSTOP)
    # When as many call as have no connection left between them
    calls = [asyncio.create_task(stats(client)) for _ in range(24)]
    await until(lambda: any(call.done() for call in calls))
    told = {call.result().json()["code"] for call in calls if call.done()}
    # And others call once that is known
    monkeypatch.setattr(pool, "POOL_TIMEOUT_SECONDS", 600.0)
    async with asyncio.timeout(PATIENCE):
        told |= {(await stats(client)).json()["code"] for _ in range(4)}
    # Then
    assert told == {"database_unavailable"}
    # When it goes on
    send(signal.SIGCONT)

    async def works() -> bool:
        return (await stats(client)).status_code == 200

    # Then so do the callers that it had kept, and others
    await until(works)
    assert {call.status_code for call in await asyncio.gather(*calls)} == {200, 503}
    assert [(await stats(client)).status_code for _ in range(4)] == [200] * 4


async def test_a_full_disk_under_a_postgres_that_ended_is_named_until_there_is_room(
    client: httpx2.AsyncClient, folder: Path, send: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given: it cannot be started again
    monkeypatch.setattr(pool, "POOL_TIMEOUT_SECONDS", 1.0)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    monkeypatch.setattr(Cluster, "write_configuration", full)
    assert await gauge(client, "storage_fault") == 0
    # When
    send(signal.SIGKILL)

    async def is_named() -> bool:
        return "is full. Free some space" in str((await client.get("/readyz")).json()["parts"]["database"])

    # Then
    await until(is_named)
    told = await client.get("/readyz")
    assert told.status_code == 503
    assert str(folder) not in told.text
    assert await gauge(client, "storage_fault") == 1
    assert [(await stats(client)).json()["code"] for _ in range(8)] == ["database_unavailable"] * 8
    # When there is room again
    monkeypatch.undo()

    async def works() -> bool:
        ready = (await client.get("/readyz")).status_code
        return (await stats(client)).status_code == ready == 200

    # Then
    await until(works)
    assert await gauge(client, "storage_fault") == 0


@pytest.mark.parametrize("trouble", [signal.SIGSTOP, signal.SIGKILL])
async def test_what_is_used_while_the_database_is_away_is_kept_when_it_is_back(
    embedded: Likewise, client: httpx2.AsyncClient, send: Any, trouble: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    monkeypatch.setattr(pool, "POOL_TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(pool, "LOOK_SECONDS", 1.0)
    await embedded.embed(["before"])
    await client.get("/embed/metrics")
    # When it is away, and texts are embedded all the same
    send(trouble)
    for number in range(20):
        await embedded.embed([f"away {number}"])
        await asyncio.sleep(0.01)
    asked = [asyncio.create_task(client.get("/embed/metrics")) for _ in range(3)]
    if trouble == signal.SIGSTOP:
        # Then one who asks may hang as long as it does, and no others behind it
        await until(lambda: sum(one.done() for one in asked) >= 2)
        assert {one.result().status_code for one in asked if one.done()} == {503}
        send(signal.SIGCONT)
    await asyncio.gather(*asked)
    monkeypatch.undo()

    async def works() -> bool:
        return (await client.get("/embed/metrics")).status_code == 200

    # When it is back, then none of them is missing, and none counts twice
    await until(works)
    assert (await embedded.usage()).total.generated == 21


async def test_who_waits_for_another_to_start_postgres_can_give_up(folder: Path) -> None:
    # Given another process that is about to start it, for as long as that takes
    cluster = Cluster(folder)
    cluster.make_home(cluster.account())
    with open_lock(cluster.lock) as turn:
        assert turn.try_exclusive()
        starting = asyncio.create_task(EmbeddedServer.start(folder))
        await asyncio.sleep(0.2)
        # When
        starting.cancel()
        # Then
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait({starting})


@pytest.mark.parametrize("verb", [("doctor",), ("db", "upgrade")])
async def test_a_signal_ends_who_waits_for_a_postgres_that_hangs(
    folder: Path, send: Any, verb: tuple[str, ...]
) -> None:
    # Given
    environment = {"LIKEWISE_DATA_DIR": str(folder), "LIKEWISE_OFFLINE": "true"}
    async with LiveServer(folder, environment).running():
        send(signal.SIGSTOP)
        # When
        waiting = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "likewise", *verb),
            env={**os.environ, **environment},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        await until(lambda: hears_signals(waiting.pid))
        # It reaches the server a moment later; what it does before that ends the same.
        await asyncio.sleep(3)
        assert waiting.returncode is None
        waiting.send_signal(signal.SIGTERM)
        # Then
        async with asyncio.timeout(PATIENCE):
            assert await waiting.wait() == 128 + signal.SIGTERM
        send(signal.SIGCONT)
