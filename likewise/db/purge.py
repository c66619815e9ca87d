"""Making what was deleted absent from the data directory: every table written anew, then the log of writes let go.

A deleted row stays in its page, in the indexes and in the log of writes (WAL) until something else is written there,
with a plain vacuum or without; and the statistics of columns keep values of rows that are gone.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import psycopg
from psycopg import AsyncConnection
from psycopg.errors import DeadlockDetected, Diagnostic, InsufficientPrivilege, LockNotAvailable, UndefinedTable
from psycopg.sql import SQL, Identifier

from likewise.backoff import Backoff
from likewise.db.failures import scrubbed
from likewise.db.maintenance import SET_INDEX_DELETES, drop_unfinished, index_lock
from likewise.db.pool import settle
from likewise.db.transaction import ProgressReport, Row, unreported

# Whoever waits for a table's lock holds up all who come after, so that is given up soon and tried again: longer than
# an automatic vacuum takes to make way (1 s).
LOCK_TIMEOUT = "2s"
# So long others may be at a table, or go on to see what was deleted while they looked.
PATIENCE_SECONDS = 60.0
TRY_AGAIN = Backoff(0.1, 10.0)

TABLES = SQL("""
    SELECT c.relname, pg_total_relation_size(c.oid), substring(c.relname FROM '^vec_([0-9]+)$')::int,
           pg_relation_size(c.oid) / (2 * a.atttypmod + 60), a.atttypmod
    FROM pg_class c
    LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'embedding' AND c.relname ~ '^vec_[0-9]+$'
    WHERE c.relnamespace = 'likewise'::regnamespace AND c.relkind IN ('r', 'm') ORDER BY 2, 1
""")
SET_UP = SQL("SELECT set_config('lock_timeout', %s, false), set_config('statement_timeout', '0', false)")
# Says how many dead rows it had to keep, because somebody may still see them.
REWRITE = SQL("VACUUM (FULL, VERBOSE) {table}")
DELETES = SQL("SELECT pg_stat_get_tuples_deleted(%s::regclass)")
LOCK_FROM_ANALYZE = SQL("LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE")
# ANALYZE leaves the statistics of a table without rows as they were.
CLEAR_STATISTICS = SQL("DELETE FROM pg_catalog.pg_statistic WHERE starelid = %s::regclass")
ANALYZE = SQL("ANALYZE {table}")
STATISTICS = Identifier("pg_catalog", "pg_statistic")
SWITCH = SQL("SELECT pg_switch_wal()")
CHECKPOINT = SQL("CHECKPOINT")
# Segments of the log from before the one that a recovery would begin with.
OLD_LOG = SQL("""
    SELECT count(*) FROM pg_ls_waldir(), pg_control_checkpoint() c
    WHERE name ~ '^[0-9A-F]{24}$' AND substr(name, 9) < substr(c.redo_wal_file, 9)
""")
# Files of tables and indexes that no catalogue knows: a crash leaves them of what was half written.
STRAY = SQL("""
    SELECT count(*)
    FROM pg_database d, pg_ls_dir('base/' || d.oid) AS file, substring(file FROM '^[0-9]+') AS node
    WHERE d.datname = current_database() AND (pg_stat_file('base/' || d.oid || '/' || file, true)).size > 0
          AND node IS NOT NULL AND NOT EXISTS (SELECT FROM pg_class c WHERE pg_relation_filenode(c.oid) = node::oid)
""")

OF_STATISTICS, OF_LOG, OF_CRASH = (
    "statistics of columns",
    "the log of writes (WAL)",
    "files that a crash of Postgres left behind",
)
ELSEWHERE = (
    "encrypted digests in Postgres's queue of notices, until it starts again",
    "backups and dumps",
    "free blocks of the disk and snapshots of it",
    "a Redis that caches vectors",
)
OF_A_NAMED_ONE = ("replicas", "an archive of the log of writes (WAL), and what replication slots keep of it")

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class PurgeOutcome:
    """The tables written anew, those that were busy, and the bytes before and after.

    `unreached` is what should be, in this database; `elsewhere` is what never is.
    """

    tables: int
    busy: tuple[str, ...]
    unreached: tuple[str, ...]
    elsewhere: tuple[str, ...]
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class _Table:
    name: str
    size: int
    generation: int | None
    rows: int | None
    dimension: int | None

    @property
    def identifier(self) -> Identifier:
        return Identifier("likewise", self.name)


async def purge(
    owner_url: str,
    superuser_url: str | None = None,
    *,
    report: ProgressReport | None = None,
    patience: float = PATIENCE_SECONDS,
) -> PurgeOutcome:
    """Write all tables anew, one after the other, each locked for as long as that takes; then let the log go.

    Args:
        superuser_url: of a server of our own, where statistics and log are ours too.
        report: is told how many tables are done of how many.
        patience: seconds that others may be at one table.
    """
    try:
        async with await AsyncConnection.connect(superuser_url or owner_url, autocommit=True) as connection:
            await settle(connection)
            await connection.execute(SET_UP, [LOCK_TIMEOUT])
            return await _Purge(connection, report, patience, is_ours=superuser_url is not None).run()
    except psycopg.Error as error:
        raise scrubbed(error) from None


class _Purge:
    def __init__(
        self, connection: AsyncConnection[Row], report: ProgressReport | None, patience: float, *, is_ours: bool
    ) -> None:
        self._connection = connection
        self._report = report or unreported
        self._patience = patience
        self._is_ours = is_ours
        self._kept = self._refused = 0
        connection.add_notice_handler(self._heard)

    async def run(self) -> PurgeOutcome:
        tables = await self._tables()
        busy = []
        for done, one in enumerate(tables):
            self._report(done, len(tables))
            if not await self._until_done(partial(self._rewrite, one)):
                busy.append(one.name)
        unreached = [part async for part in self._parts(tables)]
        self._report(len(tables), len(tables))
        after = sum(one.size for one in await self._tables())
        elsewhere = ELSEWHERE if self._is_ours else (*ELSEWHERE, *OF_A_NAMED_ONE)
        before = sum(one.size for one in tables)
        return PurgeOutcome(len(tables) - len(busy), tuple(busy), tuple(unreached), elsewhere, before, after)

    async def _parts(self, tables: list[_Table]) -> AsyncIterator[str]:
        """List what cannot be reached of the statistics, the log and the files."""
        if not await self._statistics(tables):
            yield OF_STATISTICS
        if not await self._log():
            yield OF_LOG
        if self._is_ours and not await self._until_done(self._no_strays):
            yield OF_CRASH

    async def _tables(self) -> list[_Table]:
        return [_Table(*row) for row in await (await self._connection.execute(TABLES)).fetchall()]

    async def _rewrite(self, one: _Table) -> bool:
        """Write a table anew with its indexes; return whether nothing that was deleted is left in it."""
        if one.generation is None:
            return await self._vacuum(one.identifier)
        async with index_lock(self._connection, one.generation, one.rows or 0, one.dimension or 0) as mine:
            if not mine:
                return False
            await drop_unfinished(self._connection, one.generation)
            deletes = await self._value(DELETES, f"likewise.{one.name}")
            done = await self._vacuum(one.identifier)
            if done:
                await self._connection.execute(SET_INDEX_DELETES, [deletes, one.generation])
            return done

    async def _vacuum(self, table: Identifier) -> bool:
        self._kept = 0
        await self._connection.execute(REWRITE.format(table=table))
        return self._kept == 0

    async def _statistics(self, tables: list[_Table]) -> bool:
        """Clear the statistics; return whether none are left of rows that are gone."""
        self._refused = 0
        analyzed = [await self._until_done(partial(self._analyze, one)) for one in tables]
        vacuumed = await self._until_done(partial(self._vacuum, STATISTICS))
        return all(analyzed) and vacuumed and not self._refused

    async def _analyze(self, one: _Table) -> bool:
        try:
            async with self._connection.transaction():
                await self._connection.execute(LOCK_FROM_ANALYZE.format(table=one.identifier))
                await self._connection.execute(CLEAR_STATISTICS, [f"likewise.{one.name}"])
                await self._connection.execute(ANALYZE.format(table=one.identifier))
        except InsufficientPrivilege:
            self._refused += 1
            await self._connection.execute(ANALYZE.format(table=one.identifier))
        return True

    async def _log(self) -> bool:
        """Let the log go, twice for what was written during the first checkpoint; return whether nothing is left."""
        try:
            for _ in range(2):
                await self._connection.execute(SWITCH)
                await self._connection.execute(CHECKPOINT)
            return await self._value(OLD_LOG) == 0
        except InsufficientPrivilege:
            return False

    async def _no_strays(self) -> bool:
        return await self._value(STRAY) == 0

    async def _value(self, statement: SQL, *parameters: object) -> object:
        row = await (await self._connection.execute(statement, parameters)).fetchone()
        return None if row is None else row[0]

    async def _until_done(self, work: Callable[[], Awaitable[bool]]) -> bool:
        """Try until it is done, for as long as others are to be waited for."""
        end = time.monotonic() + self._patience
        for pause in TRY_AGAIN.pauses():
            try:
                if await work():
                    return True
            except UndefinedTable:
                return True
            except (LockNotAvailable, DeadlockDetected):
                pass
            if time.monotonic() >= end:
                break
            await asyncio.sleep(pause)
        return False

    def _heard(self, notice: Diagnostic) -> None:
        """Read the notices: dead rows that had to be kept come first in the details; a refusal is a warning."""
        if notice.severity_nonlocalized == "WARNING":
            self._refused += 1
        elif notice.message_detail and (kept := _NUMBER.search(notice.message_detail)):
            self._kept += int(kept[0])
