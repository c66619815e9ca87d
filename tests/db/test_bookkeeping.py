"""What was used reaches the rows once, whatever becomes of the database on the way."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import likewise
from likewise.embedding.embedder import Embedder
from likewise.errors import DatabaseUnavailable
from likewise.library import Likewise
from likewise.settings import Settings
from likewise.testing import FakeProvider, open_folder
from tests.flows.patience import until


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
