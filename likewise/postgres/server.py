"""The embedded Postgres: found, made, started, watched and stopped; and its database: roles, schema, extension."""

import asyncio
import atexit
import contextlib
import os
import sys
import threading
from pathlib import Path
from typing import LiteralString
from urllib.parse import quote, urlencode

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier

from likewise.backoff import Backoff
from likewise.errors import ServerStartError, StorageFault
from likewise.observe.logs import get_logger
from likewise.postgres.account import SystemUser
from likewise.postgres.binaries import Binaries, find_binaries, keep_copy
from likewise.postgres.cluster import Cluster, explained
from likewise.postgres.filelock import FileLock, open_lock
from likewise.postgres.postmaster import Postmaster, RunningServer, ServerState
from likewise.stopping import to_its_end

log = get_logger(__name__)

DATABASE = "likewise"
OWNER, SERVER = "likewise_owner", "likewise_server"
WATCH_SECONDS = 0.5
START_AGAIN = Backoff(2 * WATCH_SECONDS, 5.0)
# Longer than a start may take: one process starts the server while others wait to attach.
TURN_SECONDS = 660.0
# Who starts or stops the server for longer than this is a user of it, and will be the last one out.
LEAVE_SECONDS = 5.0


class EmbeddedServer:
    """A Postgres of our own on a data directory, shared by the Likewise processes that use it.

    The first process starts it and the last one out stops it. Each of them watches it, and if it was killed one of
    them starts it again. Make one with `start`.
    """

    def __init__(self, data_dir: Path, postgres_bin: Path | None, *, durable: bool) -> None:
        self._cluster = Cluster(data_dir)
        self._postgres_bin = postgres_bin
        self._durable = durable
        self._process = os.getpid()
        self._users: FileLock | None = None
        self._postmaster: Postmaster | None = None
        self._launched: RunningServer | None = None
        self._watching: asyncio.Task[None] | None = None
        self._away: Exception | None = None
        self._given_up = threading.Event()

    @classmethod
    async def start(cls, data_dir: Path, *, postgres_bin: Path | None = None, durable: bool = True) -> "EmbeddedServer":
        """Attach to the server of a data directory, or make and start it; the database `likewise` is there then.

        `durable=False` is for throw-away servers: a kill loses the last commits, a crash of the machine all.
        Raises ServerStartError with what is wrong and how to fix it.
        """
        if sys.platform == "win32":
            raise ServerStartError("No Postgres is embedded on Windows. Use WSL or set LIKEWISE_DATABASE_URL.")
        server = cls(data_dir, postgres_bin, durable=durable)
        atexit.register(server._leave)
        try:
            await to_its_end(asyncio.to_thread(server._enter), server._given_up.set)
            await server._make_database()
        except BaseException:
            await server.close()
            raise
        server._watching = asyncio.create_task(server._watch(), name="watch the embedded Postgres")
        return server

    def url(self, role: str = OWNER, database: str = DATABASE) -> str:
        """Return a libpq URL for a role and a database of this server."""
        # The port is named because PGPORT would change it.
        where = {"host": str(self._noted.socket_folder), "port": "5432", "user": role}
        return f"postgresql:///{quote(database, safe='')}?{urlencode(where, safe='', quote_via=quote)}"

    def superuser_url(self, database: str = "postgres") -> str:
        """Return a libpq URL for the superuser, who makes databases and roles; rows are not for it."""
        return self.url("postgres", database)

    @property
    def version(self) -> str:
        """The server's version, such as 18.4."""
        return self._noted.version

    @property
    def data_directory(self) -> Path:
        """The data directory of Postgres."""
        return self._cluster.data

    @property
    def binaries(self) -> Path:
        """The folder with postgres, pg_dump and the other programs of this version."""
        return self._noted.binaries

    @property
    def away(self) -> str | None:
        """The reason why it is gone and does not start again, without a path: callers hear it. None if it runs."""
        if self._away is None or self.storage_fault is not None:
            return self.storage_fault
        return "The database is gone, and does not start again. The log line `postgres_away` says why."

    @property
    def storage_fault(self) -> str | None:
        """The reason why it is gone, if that is the storage's fault."""
        return self._away.public_detail if isinstance(self._away, StorageFault) else None

    async def close(self) -> None:
        """Stop using the server; the last one out stops it. More than once does nothing more."""
        if self._watching is not None and not self._watching.done():
            self._watching.cancel()
            await asyncio.wait({self._watching})
        self._watching = None
        await to_its_end(asyncio.to_thread(self._leave))

    @property
    def _noted(self) -> RunningServer:
        if self._launched is None:
            raise RuntimeError("this server is not started")
        return self._launched

    def _enter(self) -> None:
        """Become a user of the server and see that it runs, in one turn, so that nobody stops it in between."""
        with explained(self._cluster.home):
            self._cluster.refuse_unusable_path()
            if not self._cluster.is_there:
                self._cluster.make_home(self._cluster.account())
            with open_lock(self._cluster.lock) as turn:
                if not turn.exclusive_within(TURN_SECONDS, self._given_up):
                    raise ServerStartError(f"Another Likewise process has been holding {self._cluster.lock}. Stop it.")
                self._postmaster = Postmaster(self._cluster, self._given_up)
                self._users = FileLock(self._cluster.users)
                self._users.try_shared()
                self._ensure_running(self._postmaster)

    def _ensure_running(self, postmaster: Postmaster) -> None:
        if postmaster.settle() is ServerState.ABSENT:
            account = self._cluster.account()
            self._cluster.make_home(account)
            self._cluster.refuse_foreign_data(account)
            binaries = self._choose_binaries(account)
            if self._cluster.major is None:
                self._cluster.make_data(binaries, account, durable=self._durable)
            socket_folder = self._cluster.socket_folder(account)
            self._cluster.write_configuration(account, socket_folder, durable=self._durable)
            postmaster.launch(binaries, account, socket_folder)
        self._launched = postmaster.launched()

    def _choose_binaries(self, account: SystemUser) -> Binaries:
        home = self._cluster.home
        found = find_binaries(self._postgres_bin, home, self._cluster.major)
        binaries = keep_copy(found, home, for_another_user=not account.is_ours)
        if not account.may_enter(binaries.folder / "postgres"):
            raise ServerStartError(
                f"The user {account.name}, who runs Postgres, may not run {binaries.folder}/postgres. "
                "Name a folder that every user can read in LIKEWISE_POSTGRES_BIN."
            )
        return binaries

    async def _make_database(self) -> None:
        try:
            await create_database(self.superuser_url(), DATABASE)
        except psycopg.Error as error:
            raise ServerStartError(
                f"Postgres runs on {self._cluster.data} and does not let this process in or make its database: "
                f"{str(error).strip().splitlines()[0]}"
            ) from None

    async def _watch(self) -> None:
        """Start the server again when it is gone, whoever had started it."""
        failures = 0
        while True:
            await asyncio.sleep(START_AGAIN.pause(failures) if failures else WATCH_SECONDS)
            try:
                await to_its_end(asyncio.to_thread(self._restart_if_gone))
                failures = 0
            except Exception as error:  # noqa: BLE001 - whatever goes wrong, the watch goes on
                self._away = error
                failures += 1
                log.error(
                    "postgres_away", error=error, reason=error.detail if isinstance(error, ServerStartError) else None
                )

    def _restart_if_gone(self) -> None:
        # Without /proc a look is a program to run, which takes its time.
        if self._postmaster is not None and (self._postmaster.look() is ServerState.READY or self._restart()):
            self._away = None

    def _restart(self) -> bool:
        """Start it again unless another process is about to; return whether it runs now."""
        with explained(self._cluster.home), open_lock(self._cluster.lock) as turn:
            # Who waits longer than a watch finds in the next one that another process has started it.
            if not turn.exclusive_within(WATCH_SECONDS) or self._users is None or self._postmaster is None:
                return False
            if self._cluster.major is None:
                raise ServerStartError(f"The data directory {self._cluster.data} is gone.")
            self._ensure_running(self._postmaster)
            return True

    def _leave(self) -> None:
        """Stop using the server, and stop it if nobody else does; also run when the interpreter exits."""
        atexit.unregister(self._leave)
        if self._users is None or self._postmaster is None or os.getpid() != self._process:
            return
        with contextlib.suppress(OSError, ServerStartError), open_lock(self._cluster.lock) as turn:
            my_turn = turn.exclusive_within(LEAVE_SECONDS)
            self._users.release()
            if my_turn and self._users.try_exclusive():
                self._postmaster.stop()
                if self._launched is not None:
                    self._launched.socket_folder.rmdir()
        self._users.close()
        self._postmaster.close()
        self._users = self._postmaster = None


# Any number, the same in every process: who makes roles and databases does so alone.
LOCK_KEY = 0x6C696B65
WAIT_SECONDS = 60.0
# What a server says that starts, or that ends all sessions because one of them crashed.
PASSING = ("the database system is", "server closed the connection unexpectedly")

LOCK = "SELECT pg_advisory_lock(%s)"
ROLE_EXISTS = "SELECT 1 FROM pg_roles WHERE rolname = %s"
MAKE_ROLE = "CREATE ROLE {role} LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION"
DATABASE_EXISTS = "SELECT 1 FROM pg_database WHERE datname = %s"
# template0: nothing that someone put into template1 comes along.
MAKE_DATABASE = "CREATE DATABASE {database} OWNER likewise_owner TEMPLATE template0"
# Installed and available version of pgvector; no row where it is not installed.
VECTOR_VERSIONS = """
    SELECT e.extversion, a.default_version
    FROM pg_extension e JOIN pg_available_extensions a ON a.name = e.extname
    WHERE e.extname = 'vector'
"""
UPDATE_VECTOR = "ALTER EXTENSION vector UPDATE"
# In one transaction, so that an installed extension means that all of it was done.
FURNISH: tuple[LiteralString, ...] = (
    "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
    "CREATE SCHEMA likewise AUTHORIZATION likewise_owner",
    "CREATE EXTENSION vector SCHEMA likewise",
    "REVOKE ALL ON DATABASE {database} FROM PUBLIC",
    "GRANT CONNECT, TEMPORARY ON DATABASE {database} TO likewise_owner, likewise_server",
    "ALTER ROLE likewise_owner IN DATABASE {database} SET search_path = likewise, public",
    "ALTER ROLE likewise_server IN DATABASE {database} SET search_path = likewise, public",
)


async def create_database(superuser_url: str, name: str) -> None:
    """Make the roles and the database if absent; any number of processes may do so at once.

    The database belongs to `likewise_owner` and has pgvector in the schema `likewise`; nobody but the two roles may
    connect. An older pgvector in it is updated to the one that is installed. A server that starts, or that recovers
    from a crash of one of its processes, is waited for.
    """
    end = asyncio.get_running_loop().time() + WAIT_SECONDS
    while True:
        try:
            return await _create_database(superuser_url, name)
        except psycopg.OperationalError as error:
            # libpq gives no SQLSTATE for a refused connection; the embedded server's messages are English.
            passing = any(sign in str(error) for sign in PASSING)
            if not passing or asyncio.get_running_loop().time() > end:
                raise
        await asyncio.sleep(0.02)


async def _create_database(superuser_url: str, name: str) -> None:
    """Make what is missing of the roles, the database and its extension."""
    url = make_conninfo(superuser_url, dbname=name)
    if await _exists(superuser_url, name) and await _is_furnished(url):
        return
    async with await _connect(superuser_url) as connection:
        await connection.execute(LOCK, (LOCK_KEY,))
        await _make_roles(connection)
        if not await _found(connection, DATABASE_EXISTS, name):
            await connection.execute(SQL(MAKE_DATABASE).format(database=Identifier(name)))
        if not await _is_furnished(url):
            await _furnish(url, name)


async def _connect(url: str) -> psycopg.AsyncConnection:
    return await psycopg.AsyncConnection.connect(url, autocommit=True)


async def _exists(superuser_url: str, name: str) -> bool:
    async with await _connect(superuser_url) as connection:
        return await _found(connection, DATABASE_EXISTS, name)


async def _make_roles(connection: psycopg.AsyncConnection) -> None:
    for role in (OWNER, SERVER):
        if not await _found(connection, ROLE_EXISTS, role):
            await connection.execute(SQL(MAKE_ROLE).format(role=Identifier(role)))


async def _is_furnished(url: str) -> bool:
    async with await _connect(url) as connection:
        versions = await (await connection.execute(VECTOR_VERSIONS)).fetchone()
        if versions is not None and versions[0] != versions[1]:
            await connection.execute(UPDATE_VECTOR)
        return versions is not None


async def _furnish(url: str, name: str) -> None:
    async with await _connect(url) as connection, connection.transaction():
        for statement in FURNISH:
            await connection.execute(SQL(statement).format(database=Identifier(name)))


async def _found(connection: psycopg.AsyncConnection, question: LiteralString, name: str) -> bool:
    return await (await connection.execute(question, (name,))).fetchone() is not None
