"""Health of the database as catalogues and statistics of Postgres tell it, for metrics and `likewise doctor`.

Nothing here gives a row of a tenant's, and none of it costs more with thousands of collections.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import AsyncConnection
from psycopg.sql import SQL

from likewise.db.maintenance import MAX_SCANNED
from likewise.db.pool import Pool
from likewise.db.transaction import Row
from likewise.postgres.cluster import Cluster
from likewise.postgres.filelock import open_lock
from likewise.postgres.postmaster import Postmaster, ServerState

CONNECT_SECONDS = 5
# Sets the connection of whoever looks apart from those that serve and work.
LOOKING = "likewise doctor"

# Counted by the statistics: to count the rows themselves would take long just when many wait.
WAITING_ESTIMATE = SQL("""
    SELECT coalesce(max(n_live_tup), 0) FROM pg_stat_user_tables
    WHERE schemaname = 'likewise' AND relname = 'waiting'
""")
BOUND = SQL("SELECT set_config('statement_timeout', '5s', false), set_config('lock_timeout', '2s', false)")
SERVER = SQL("""
    SELECT current_setting('server_encoding'),
           current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
           - coalesce(current_setting('reserved_connections', true)::int, 0),
           (SELECT count(*)::int FROM pg_stat_activity WHERE backend_type = 'client backend'),
           datconnlimit, datcollversion <> pg_database_collation_actual_version(oid),
           current_setting('transaction_read_only')::boolean
    FROM pg_database WHERE datname = current_database()
""")
CLOCK = SQL("SELECT extract(epoch FROM clock_timestamp())::float8")
ROLE = SQL("""
    SELECT rolsuper, rolbypassrls, rolconnlimit,
           EXISTS (SELECT FROM pg_namespace n
                   WHERE nspname = 'likewise' AND has_schema_privilege(r.oid, n.oid, 'CREATE'))
    FROM pg_roles r WHERE rolname = %s
""")
# Every generation's table with its size, whether its index is valid (null: it has none), and whether anybody builds
# one now. The row of `generations` is seen by the owner alone.
VECTOR_TABLES = SQL("""
    SELECT substr(c.relname, 5)::int, coalesce(s.n_live_tup, 0), a.atttypmod, g.index_state,
           (SELECT bool_and(i.indisvalid) FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
            JOIN pg_am m ON m.oid = x.relam WHERE i.indrelid = c.oid AND m.amname = 'hnsw'),
           EXISTS (SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.classid = 7721 AND l.granted
                   AND l.objid = substr(c.relname, 5)::oid)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'embedding'
    LEFT JOIN pg_stat_user_tables s ON s.relid = c.oid
    LEFT JOIN likewise.generations g ON g.id = substr(c.relname, 5)::int
    WHERE n.nspname = 'likewise' AND c.relkind = 'r' AND c.relname ~ '^vec_[0-9]+$'
          AND coalesce(g.state, 'active') <> 'retired'
    ORDER BY 1
""")
OLDEST_WAITING = SQL("SELECT model, oldest FROM likewise.waiting_models()")
# Who serves or works is connected as the same role, and named so by its pool.
OTHERS = SQL(
    "SELECT count(*)::int FROM pg_stat_activity WHERE application_name = 'likewise' AND datname = current_database()"
)
FAILED = SQL("""
    SELECT coalesce(reason, 'unknown'), count(*) FROM likewise.contents WHERE state = 'failed'
    GROUP BY 1 ORDER BY 2 DESC
""")


@dataclass(frozen=True)
class ServerFacts:
    """A server: its encoding, connections that others than superusers may have and that are taken, and the rest."""

    encoding: str
    connections: int
    taken: int
    database_limit: int
    collation_changed: bool
    read_only: bool


@dataclass(frozen=True)
class RoleFacts:
    """The powers of a role; a limit of -1 is none."""

    is_superuser: bool
    bypasses: bool
    limit: int
    may_create: bool


@dataclass(frozen=True)
class VectorTable:
    """One generation's vectors; `state` is unknown (None) to all but the owner, `valid` is None without an index."""

    generation: int
    vectors: int
    dimension: int
    state: str | None
    valid: bool | None
    being_built: bool

    @property
    def fault(self) -> str | None:
        """The fault of its index, if nobody is at it."""
        if self.being_built:
            return None
        if self.valid is False:
            return "has an index that is not valid"
        if self.state == "building":
            return "is marked as being indexed, and nobody builds the index"
        if self.state == "ready" and self.valid is None:
            return "is marked as indexed, and has no index"
        if self.valid is None and self.vectors * self.dimension > MAX_SCANNED:
            return f"has about {self.vectors} vectors and no index"
        return None


async def waiting_estimate(pool: Pool) -> int:
    """Estimate the contents that wait for a vector, over all tenants."""
    return max(0, await pool.number(WAITING_ESTIMATE))


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[AsyncConnection[Row]]:
    """Connect for looking: the connection is not waited for long, and neither is anything that it asks."""
    async with await AsyncConnection.connect(
        url, autocommit=True, connect_timeout=CONNECT_SECONDS, application_name=LOOKING
    ) as connection:
        await connection.execute(BOUND)
        yield connection


def server_is_busy(data_dir: Path, seconds: float) -> bool:
    """Return whether another process starts or stops the embedded server for so long; block until it is known."""
    lock = Cluster(data_dir).lock
    if not lock.exists():
        return False
    with open_lock(lock) as turn:
        return not turn.exclusive_within(seconds)


async def server_is_silent(data_dir: Path, seconds: float) -> bool:
    """Return whether the embedded server runs and has not answered for so long, as one that is stopped or starved."""
    cluster = Cluster(data_dir)
    if not cluster.running.exists():
        return False
    try:
        postmaster = Postmaster(cluster)
    except OSError:
        return False
    try:
        if await asyncio.to_thread(postmaster.look) is not ServerState.READY:
            return False
        async with asyncio.timeout(seconds), await AsyncConnection.connect(postmaster.address, connect_timeout=60):
            return False
    except TimeoutError:
        return True
    except (psycopg.Error, OSError, ValueError, KeyError):
        return False
    finally:
        postmaster.close()


async def server_facts(connection: AsyncConnection[Row]) -> ServerFacts:
    """Ask about the server, as anybody."""
    return ServerFacts(*await _row(connection, SERVER))


async def role_facts(connection: AsyncConnection[Row], role: str) -> RoleFacts | None:
    """Ask about a role, as anybody; None if there is none of this name."""
    row = await (await connection.execute(ROLE, [role])).fetchone()
    return None if row is None else RoleFacts(*row)


async def clock_ahead(connection: AsyncConnection[Row], now: Callable[[], float] = time.time) -> float:
    """Return the seconds that the server's clock is ahead of this machine's and that the way there does not explain."""
    before = now()
    row = await _row(connection, CLOCK)
    after = now()
    there = float(row[0])
    return max(0.0, there - after) or min(0.0, there - before)


async def vector_tables(connection: AsyncConnection[Row]) -> list[VectorTable]:
    """List every generation that is not retired."""
    return [VectorTable(*row) for row in await (await connection.execute(VECTOR_TABLES)).fetchall()]


async def oldest_waiting(connection: AsyncConnection[Row]) -> dict[str, float]:
    """Return the seconds that the oldest content of each model has waited, asked as the role that serves."""
    return {str(model): float(oldest) for model, oldest in await (await connection.execute(OLDEST_WAITING)).fetchall()}


async def others_connected(connection: AsyncConnection[Row]) -> int:
    """Count connections of processes that serve or work, asked as their role."""
    return int((await _row(connection, OTHERS))[0])


async def failed_texts(connection: AsyncConnection[Row]) -> dict[str, int]:
    """Count texts that have failed for good, by the reason's code, asked as the owner."""
    return {str(reason): int(count) for reason, count in await (await connection.execute(FAILED)).fetchall()}


async def _row(connection: AsyncConnection[Row], statement: SQL) -> Row:
    row = await (await connection.execute(statement)).fetchone()
    assert row is not None
    return row
