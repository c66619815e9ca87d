"""What was used reaches the rows once, whatever becomes of the database on the way."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import pytest
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import likewise
from likewise.embedding.costs import Usage, UsageAccount
from likewise.embedding.embedder import Embedder
from likewise.errors import DatabaseUnavailable
from likewise.library import Likewise
from likewise.settings import Settings
from likewise.testing import DatabaseUrls, FakeProvider, open_folder
from tests.conftest import Opener
from tests.patience import until


@dataclass
class Wire:
    """A socket between a Likewise and its Postgres, to be cut before usage is committed, or before that is known."""

    folder: Path
    postgres: str
    cut: Literal["before", "after"] | None = None
    closed: bool = False
    cuts: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side has enough."""
        if self.closed:
            writer.close()
            return
        back, forth = await asyncio.open_unix_connection(self.postgres)
        ways = [asyncio.create_task(self._to_postgres(reader, forth)), asyncio.create_task(_pour(back, writer))]
        self.tasks.update(ways)
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for one in ways:
            one.cancel()
        for end in (writer, forth):
            end.close()

    async def _to_postgres(self, reader: asyncio.StreamReader, postgres: asyncio.StreamWriter) -> None:
        adds = False
        while data := await reader.read(2**16):
            adds = adds or b"add_usage" in data
            ends = adds and b"COMMIT" in data and self.cut is not None
            if ends:
                self.cuts, self.closed = self.cuts + 1, True
            if not (ends and self.cut == "before"):
                postgres.write(data)
                await postgres.drain()
            if ends:
                # What Postgres answers is not passed on any more.
                return


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(2**16):
        writer.write(data)
        await writer.drain()


@pytest.fixture
async def wire(settings: Settings) -> AsyncIterator[Wire]:
    """A way to the test's database."""
    parts = conninfo_to_dict(settings.database_serving_url or "")
    folder = open_folder()
    wire = Wire(folder, f"{parts['host']}/.s.PGSQL.{parts.get('port', 5432)}")
    server = await asyncio.start_unix_server(wire.carry, folder / ".s.PGSQL.5432")
    async with server:
        yield wire
        for task in wire.tasks:
            task.cancel()


@contextlib.asynccontextmanager
async def over(wire: Wire, settings: Settings) -> AsyncIterator[Likewise]:
    """A Likewise whose way to the database can be cut."""
    url = make_conninfo(settings.database_serving_url or "", host=str(wire.folder), port=5432)
    changed = settings.model_copy(update={"database_serving_url": url, "database_direct_url": settings.database_url})
    embedder = Embedder(changed, providers={changed.model: lambda spec: FakeProvider()})
    async with likewise.open(changed, worker=False, embedder=embedder) as opened:
        yield opened


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_a_commit_that_nobody_heard_of_counts_once(
    cut: Literal["before", "after"], wire: Wire, settings: Settings
) -> None:
    async with over(wire, settings) as lw:
        # Given
        await lw.embed(["one two", "three"])
        # When the connection is lost at the commit
        wire.cut = cut
        with pytest.raises(DatabaseUnavailable):
            await lw.runtime.bookkeeping.flush()
        assert wire.cuts == 1
        await lw.embed(["four"])
        # And comes back
        wire.closed, wire.cut = False, None

        async def flushed() -> bool:
            with contextlib.suppress(DatabaseUnavailable):
                await lw.runtime.bookkeeping.flush()
                return True
            return False

        await until(flushed)
        # Then
        assert ((await lw.usage()).total.generated, (await lw.usage()).total.tokens) == (3, 4 + 3 + 3)


async def test_what_is_lost_at_the_end_is_said(
    wire: Wire, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Given
    async with over(wire, settings) as lw:
        await lw.embed(["one two", "three"])
        # When the connection is lost at the commit, and comes back no more
        monkeypatch.setattr("likewise.db.pool.POOL_TIMEOUT_SECONDS", 0.5)
        wire.cut = "before"
    # Then
    told = [record.msg for record in caplog.records if "usage_lost" in str(record.msg)]
    assert [(one["texts"], one["in_doubt"]) for one in told] == [(0, 2)]


async def test_who_is_cancelled_while_it_is_kept_loses_nothing(lw: Likewise) -> None:
    # Given
    chosen = random.Random(3)
    for number in range(60):
        await lw.embed([f"text {number}"])
        # When a caller leaves at any moment
        leaving = asyncio.create_task(lw.runtime.bookkeeping.flush())
        await asyncio.sleep(chosen.uniform(0, 0.004))
        leaving.cancel()
        await asyncio.wait({leaving})

    async def counted() -> bool:
        with contextlib.suppress(DatabaseUnavailable):
            return (await lw.usage()).total.generated >= 60
        return False

    # Then
    await until(counted)
    total = (await lw.usage()).total
    assert (total.texts, total.generated, total.tokens) == (60, 60, 60 * 4)


async def test_what_many_tenants_used_is_one_transaction(open_likewise: Opener, database: DatabaseUrls) -> None:
    # Given usage of as many tenants as there may be at once
    hour = datetime(2026, 3, 1, tzinfo=UTC)
    tenants = range(1, 2_001)
    used = {UsageAccount(tenant, model, hour): Usage(1, 0, 1, 10) for tenant in tenants for model in ("a", "b")}
    # When
    async with open_likewise(worker=False) as lw:
        lw.embedder.ledger.put_back(used)
        await lw.runtime.bookkeeping.flush()
    # Then all rows are of one, whatever else has transactions meanwhile
    query = "SELECT count(*), sum(tokens)::int, count(DISTINCT xmin::text) FROM likewise.usage WHERE hour = %s"
    async with await AsyncConnection.connect(database.owner, autocommit=True) as connection:
        assert await (await connection.execute(query, [hour])).fetchone() == (4_000, 40_000, 1)
