"""Maintenance by the owner in the background: indexes are built and rebuilt, and chance similarity is measured."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
import psycopg
from psycopg import AsyncConnection
from psycopg.sql import SQL, Identifier

from likewise.db.pool import settle
from likewise.db.transaction import Row, table
from likewise.observe.logs import get_logger

# Up to here a scan of the whole table is as fast as the index and finds everything (20,000 x 384: 3 ms).
MAX_SCANNED = 8_000_000
# An index is built anew once this share of its rows is dead: a vacuum of it takes longer than that (of 5 % of 93,000
# rows 38 s, building them 14 s), and until then searches wade through what is gone.
DEAD_SHARE = 0.02
MIN_DEAD = 500
INTERVAL_SECONDS = 5.0
FAILED_SECONDS = 60.0
# One process at a time builds a generation's index.
BUILD_LOCK = SQL("SELECT pg_try_advisory_lock(7721, %s)")
BUILD_UNLOCK = SQL("SELECT pg_advisory_unlock(7721, %s)")

# What an element of the graph takes beside its vector, with 16 neighbours a layer.
GRAPH_BYTES = 1_200
MIN_MEMORY = 64 * 2**20

MIN_FOR_BACKGROUND = 100
BACKGROUND_SAMPLE = 2_000

# Statistics of the tables, not counts: looking must cost nothing with thousands of collections. A crash resets those of
# activity; then the last ANALYZE tells, and before any the table's size (60 bytes a row beside the vector).
GENERATIONS = SQL("""
    SELECT g.id, g.dimension, g.index_state, g.background_from, g.index_deletes, coalesce(s.n_tup_del, 0),
           CASE WHEN s.n_live_tup > 0 THEN s.n_live_tup
                WHEN c.reltuples > 0 THEN c.reltuples::bigint
                ELSE pg_relation_size(c.oid) / (2 * g.dimension + 60) END
    FROM generations g
    JOIN pg_class c ON c.relnamespace = 'likewise'::regnamespace AND c.relname = 'vec_' || g.id
    LEFT JOIN pg_stat_user_tables s ON s.relid = c.oid
    WHERE g.state <> 'retired'
""")
SET_INDEX_STATE = SQL("UPDATE generations SET index_state = %s WHERE id = %s")
SET_INDEX_DELETES = SQL("UPDATE generations SET index_deletes = %s WHERE id = %s")
DROP_INDEX = SQL("DROP INDEX IF EXISTS {index}")
# What rebuilds leave that were cut off: not valid, and written to all the same.
UNFINISHED = SQL("""
    SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE c.relnamespace = 'likewise'::regnamespace AND NOT i.indisvalid
          AND c.relname ~ ('^vec_' || %s || '_(embedding|pkey)_cc(new|old)[0-9]*$')
""")
REBUILD_INDEX = SQL("REINDEX INDEX CONCURRENTLY {index}")
# From here on vacuum leaves the index to be rebuilt, which is quicker than to repair it row by row.
LEAVE_INDEX_TO_US = SQL("ALTER TABLE {vectors} SET (vacuum_index_cleanup = off)")
# The new index has no dead rows, so this goes through it once and makes their room free for others.
FREE_ROWS = SQL("VACUUM (INDEX_CLEANUP ON, TRUNCATE OFF) {vectors}")
BUILD_MEMORY = SQL("""
    SELECT set_config('maintenance_work_mem', least(%s, reset_val::bigint)::text, false)
    FROM pg_settings WHERE name = 'maintenance_work_mem'
""")
BUILD_INDEX = SQL("""
    CREATE INDEX CONCURRENTLY {index} ON {vectors} USING hnsw (embedding halfvec_cosine_ops)
    WITH (m = 16, ef_construction = 64)
""")
SAMPLE = SQL("SELECT embedding FROM {vectors} TABLESAMPLE BERNOULLI (%s) LIMIT %s")
SET_BACKGROUND = SQL("UPDATE generations SET background = %s, background_from = %s WHERE id = %s")
log = get_logger(__name__)


@dataclass(frozen=True)
class _Vectors:
    """A generation's table as the statistics have it."""

    generation: int
    dimension: int
    index_state: str
    background_from: int
    index_deletes: int
    deletes: int
    live: int

    @property
    def dead(self) -> int:
        """Rows that were deleted since the index was built; of a count that was reset, those since then."""
        return self.deletes - self.index_deletes if self.deletes >= self.index_deletes else self.deletes

    @property
    def index(self) -> Identifier:
        """The name of its index."""
        return Identifier(f"vec_{int(self.generation)}_embedding")

    @property
    def table(self) -> Identifier:
        """The name of its table."""
        return table("vec", self.generation)


@asynccontextmanager
async def index_lock(
    connection: AsyncConnection[Row], generation: int, vectors: int, dimension: int
) -> AsyncIterator[bool]:
    """Work on a generation's index unless another process does, with what its graph needs of the server's memory.

    A build in parallel takes all that it may at once.
    """
    row = await (await connection.execute(BUILD_LOCK, [generation])).fetchone()
    mine = bool(row and row[0])
    try:
        if mine:
            needed = max(MIN_MEMORY, int(vectors * (2 * dimension + GRAPH_BYTES)))
            await connection.execute(BUILD_MEMORY, [needed // 2**10])
        yield mine
    finally:
        if mine and not connection.closed:
            await connection.execute(BUILD_UNLOCK, [generation])


async def drop_unfinished(connection: AsyncConnection[Row], generation: int) -> None:
    """Drop the indexes that rebuilds left behind which were cut off."""
    for (name,) in await (await connection.execute(UNFINISHED, [generation])).fetchall():
        await connection.execute(DROP_INDEX.format(index=Identifier(name)))


class Maintenance:
    """Background work that runs beside the server wherever the owner's URL is known."""

    def __init__(self, owner_url: str, *, max_scanned: int = MAX_SCANNED, min_dead: int = MIN_DEAD) -> None:
        """Work as the owner.

        Args:
            max_scanned: contents times dimension up to which there is no index.
            min_dead: rows that must be dead at least before an index is built anew.
        """
        self._url = owner_url
        self._max_scanned = max_scanned
        self._min_dead = min_dead
        self._again: dict[int, float] = {}

    async def run(self) -> None:
        """Look every few seconds until cancelled."""
        while True:
            try:
                await self.step()
            except psycopg.Error as error:
                log.warning("maintenance_failed", sqlstate=error.sqlstate)
            await asyncio.sleep(INTERVAL_SECONDS)

    async def step(self) -> None:
        """Look once at every generation, and do what is due."""
        async with await AsyncConnection.connect(self._url, autocommit=True) as connection:
            await settle(connection)
            rows = await (await connection.execute(GENERATIONS)).fetchall()
            for row in rows:
                if self._again.get(row[0], 0.0) < time.monotonic():
                    await self._look_at(connection, _Vectors(*row))

    async def _look_at(self, connection: AsyncConnection[Row], vectors: _Vectors) -> None:
        """Do what is due for one generation; what fails is left for a while and keeps nothing else from its turn."""
        try:
            if vectors.index_state == "building" or (
                vectors.index_state == "none" and vectors.live * vectors.dimension > self._max_scanned
            ):
                await self._alone(connection, vectors, self._build)
            elif vectors.dead >= max(self._min_dead, DEAD_SHARE * vectors.live):
                await self._alone(connection, vectors, self._rebuild if vectors.index_state == "ready" else self._free)
            if vectors.live >= MIN_FOR_BACKGROUND and vectors.live >= 2 * vectors.background_from:
                await self._measure_background(connection, vectors.generation, vectors.live)
        except psycopg.Error as error:
            if connection.closed:
                raise
            log.warning("maintenance_failed", generation=vectors.generation, sqlstate=error.sqlstate)
            self._again[vectors.generation] = time.monotonic() + FAILED_SECONDS

    async def _alone(
        self,
        connection: AsyncConnection[Row],
        vectors: _Vectors,
        work: Callable[[AsyncConnection[Row], _Vectors], Awaitable[None]],
    ) -> None:
        """Work on an index unless another process does."""
        async with index_lock(connection, vectors.generation, vectors.live, vectors.dimension) as mine:
            if mine:
                await work(connection, vectors)

    async def _build(self, connection: AsyncConnection[Row], vectors: _Vectors) -> None:
        await connection.execute(SET_INDEX_STATE, ["building", vectors.generation])
        # What a builder that was killed left behind is not valid, and in the way.
        await connection.execute(DROP_INDEX.format(index=vectors.index))
        await connection.execute(BUILD_INDEX.format(index=vectors.index, vectors=vectors.table))
        await connection.execute(LEAVE_INDEX_TO_US.format(vectors=vectors.table))
        await connection.execute(SET_INDEX_DELETES, [vectors.deletes, vectors.generation])
        await connection.execute(SET_INDEX_STATE, ["ready", vectors.generation])
        log.info("index_built", generation=vectors.generation)

    async def _rebuild(self, connection: AsyncConnection[Row], vectors: _Vectors) -> None:
        """Build the index anew beside the old one, which answers meanwhile, then free the rows that it leaves out."""
        await drop_unfinished(connection, vectors.generation)
        await connection.execute(REBUILD_INDEX.format(index=vectors.index))
        await self._free(connection, vectors)
        log.info("index_rebuilt", generation=vectors.generation)

    async def _free(self, connection: AsyncConnection[Row], vectors: _Vectors) -> None:
        """Make the room of dead rows free for others."""
        await connection.execute(FREE_ROWS.format(vectors=vectors.table))
        await connection.execute(SET_INDEX_DELETES, [vectors.deletes, vectors.generation])

    async def _measure_background(self, connection: AsyncConnection[Row], generation: int, vectors: int) -> None:
        """Measure the mean cosine of all pairs of a sample: what `not alike` looks like in this space."""
        share = min(100.0, 100.0 * 1.5 * BACKGROUND_SAMPLE / vectors)
        statement = SAMPLE.format(vectors=table("vec", generation))
        rows = await (await connection.execute(statement, [share, BACKGROUND_SAMPLE])).fetchall()
        sample = np.array([row[0].to_numpy() for row in rows], np.float32)
        if len(sample) < MIN_FOR_BACKGROUND:
            return
        # The square of the sum of all vectors is that of each with each, itself included.
        of_pairs = np.sum(sample.sum(axis=0) ** 2) - np.sum(sample**2)
        background = float(of_pairs / (len(sample) * (len(sample) - 1)))
        await connection.execute(SET_BACKGROUND, [background, vectors, generation])
