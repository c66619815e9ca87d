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
from likewise.db.server import EmbeddedServer, create_database

_TEMPLATE = "template_likewise"


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


def open_folder() -> Path:
    """A temporary folder that others may enter: as root the server runs as another user."""
    folder = Path(tempfile.mkdtemp(prefix="likewise-"))
    folder.chmod(0o755)
    return folder


@contextlib.asynccontextmanager
async def throwaway_postgres() -> AsyncIterator[ThrowawayPostgres]:
    """A Postgres for one run of tests: started in a moment, nothing flushed to disk, gone at the end."""
    folder = open_folder()
    server = await EmbeddedServer.start(folder, durable=False)
    try:
        postgres = ThrowawayPostgres(server)
        await postgres.prepare()
        yield postgres
    finally:
        await server.close()
        shutil.rmtree(folder, ignore_errors=True)
