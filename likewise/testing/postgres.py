"""A throw-away Postgres."""

import contextlib
import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg.sql import SQL, Identifier

from likewise.db import migrate, roles
from likewise.postgres.server import EmbeddedServer, create_database

_TEMPLATE = "template_likewise"
# Making a database copies hundreds of small files: milliseconds in memory, up to a quarter of a second on a disk.
_MEMORY, _ENOUGH_BYTES = Path("/dev/shm"), 4 << 30  # noqa: S108 - the file's name in it is made by mkdtemp


@dataclass(frozen=True)
class DatabaseUrls:
    """One migrated database: as its owner, and as the role that serves."""

    owner: str
    serving: str


class ThrowawayPostgres:
    """A real server in a temporary folder that forgets everything; each database is a copy of a migrated one."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.server = server
        self._numbers = itertools.count()

    async def prepare(self) -> None:
        """Make the database that the others are copies of."""
        await create_database(self.server.superuser_url(), _TEMPLATE)
        await migrate.upgrade(self.server.url("likewise_owner", _TEMPLATE), server_role=roles.SERVER_ROLE)

    @contextlib.asynccontextmanager
    async def database(self) -> AsyncIterator[DatabaseUrls]:
        """An empty, migrated database, dropped at the end of the block."""
        name = f"test_{next(self._numbers)}"
        await self._as_superuser(
            SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy OWNER likewise_owner"), name, _TEMPLATE
        )
        await self._as_superuser(SQL("GRANT CONNECT, TEMPORARY ON DATABASE {} TO likewise_server"), name)
        try:
            yield DatabaseUrls(self.server.url("likewise_owner", name), self.server.url(roles.SERVER_ROLE, name))
        finally:
            await self._as_superuser(SQL("DROP DATABASE {} WITH (FORCE)"), name)

    async def _as_superuser(self, statement: SQL, *names: str) -> None:
        async with await psycopg.AsyncConnection.connect(self.server.superuser_url(), autocommit=True) as connection:
            await connection.execute(statement.format(*map(Identifier, names)))


def open_folder(*, within: Path | None = None) -> Path:
    """A temporary folder that others may enter: as root the server runs as another user."""
    folder = Path(tempfile.mkdtemp(prefix="likewise-", dir=within))
    folder.chmod(0o755)
    return folder


def _roomy_memory() -> Path | None:
    """A folder that is kept in memory, where there is one with room."""
    try:
        return _MEMORY if shutil.disk_usage(_MEMORY).free >= _ENOUGH_BYTES else None
    except OSError:
        return None


@contextlib.asynccontextmanager
async def throwaway_postgres() -> AsyncIterator[ThrowawayPostgres]:
    """A Postgres for one run of tests: started in a moment, in memory if there is room, gone at the end."""
    folder = open_folder(within=_roomy_memory())
    server = await EmbeddedServer.start(folder, durable=False)
    try:
        postgres = ThrowawayPostgres(server)
        await postgres.prepare()
        yield postgres
    finally:
        await server.close()
        shutil.rmtree(folder, ignore_errors=True)
