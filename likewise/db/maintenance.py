"""What the owner does in the background: build indexes, and measure how alike any two texts of a collection are."""

import asyncio
import time

import numpy as np
import psycopg
from psycopg import AsyncConnection
from psycopg.sql import SQL, Identifier

from likewise.db.pool import Row, settle, table
from likewise.observe.logs import get_logger

# Up to here a scan of the whole table is as fast as the index and finds everything (20,000 x 384: 3 ms).
MOST_SCANNED = 8_000_000
INTERVAL_SECONDS = 5.0
FAILED_SECONDS = 60.0
# One process at a time builds a generation's index.
BUILD_LOCK = SQL("SELECT pg_try_advisory_lock(7721, %s)")
BUILD_UNLOCK = SQL("SELECT pg_advisory_unlock(7721, %s)")

LEAST_FOR_BACKGROUND = 100
BACKGROUND_PAIRS = 1000

# Statistics of the tables, not counts: looking must cost nothing with thousands of collections.
GENERATIONS = SQL("""
    SELECT g.id, g.dimension, g.index_state, g.background_from, coalesce(s.n_live_tup, 0)
    FROM generations g LEFT JOIN pg_stat_user_tables s ON s.schemaname = 'likewise' AND s.relname = 'vec_' || g.id
    WHERE g.state <> 'retired'
""")
SET_INDEX_STATE = SQL("UPDATE generations SET index_state = %s WHERE id = %s")
DROP_INDEX = SQL("DROP INDEX IF EXISTS {index}")
BUILD_INDEX = SQL("""
    CREATE INDEX CONCURRENTLY {index} ON {vectors} USING hnsw (embedding halfvec_cosine_ops)
    WITH (m = 16, ef_construction = 64)
""")
SAMPLE = SQL("SELECT embedding FROM {vectors} TABLESAMPLE BERNOULLI (%s) LIMIT %s")
SET_BACKGROUND = SQL("UPDATE generations SET background = %s, background_from = %s WHERE id = %s")
log = get_logger(__name__)


class Maintenance:
    """Runs beside the server wherever the owner's URL is known."""

    def __init__(self, owner_url: str, *, most_scanned: int = MOST_SCANNED, interval: float = INTERVAL_SECONDS) -> None:
        self._url = owner_url
        self._most_scanned = most_scanned
        self._interval = interval
        self._again: dict[int, float] = {}

    async def run(self) -> None:
        """Look every few seconds until cancelled."""
        while True:
            try:
                await self.step()
            except psycopg.Error as error:
                log.warning("maintenance_failed", sqlstate=error.sqlstate)
            await asyncio.sleep(self._interval)

    async def step(self) -> None:
        """Look once at every generation, and do what is due."""
        async with await AsyncConnection.connect(self._url, autocommit=True) as connection:
            await settle(connection)
            rows = await (await connection.execute(GENERATIONS)).fetchall()
            for row in rows:
                if self._again.get(row[0], 0.0) < time.monotonic():
                    await self._look_at(connection, *row)

    async def _look_at(
        self,
        connection: AsyncConnection[Row],
        generation: int,
        dimension: int,
        index_state: str,
        background_from: int,
        vectors: int,
    ) -> None:
        """Do what is due for one generation; what fails is left for a while and keeps nothing else from its turn."""
        try:
            if index_state != "ready" and (index_state == "building" or vectors * dimension > self._most_scanned):
                await self._build(connection, generation)
            if vectors >= LEAST_FOR_BACKGROUND and vectors >= 2 * background_from:
                await self._measure_background(connection, generation, vectors)
        except psycopg.Error as error:
            if connection.closed:
                raise
            log.warning("maintenance_failed", generation=generation, sqlstate=error.sqlstate)
            self._again[generation] = time.monotonic() + FAILED_SECONDS

    async def _build(self, connection: AsyncConnection[Row], generation: int) -> None:
        row = await (await connection.execute(BUILD_LOCK, [generation])).fetchone()
        if row is None or not row[0]:
            return
        index = Identifier(f"vec_{int(generation)}_embedding")
        try:
            await connection.execute(SET_INDEX_STATE, ["building", generation])
            # What a builder that was killed left behind is not valid, and in the way.
            await connection.execute(DROP_INDEX.format(index=index))
            await connection.execute(BUILD_INDEX.format(index=index, vectors=table("vec", generation)))
            await connection.execute(SET_INDEX_STATE, ["ready", generation])
            log.info("index_built", generation=generation)
        finally:
            await connection.execute(BUILD_UNLOCK, [generation])

    async def _measure_background(self, connection: AsyncConnection[Row], generation: int, vectors: int) -> None:
        """The mean cosine of random pairs: what `not alike` looks like in this space."""
        wanted = 2 * BACKGROUND_PAIRS
        share = min(100.0, 100.0 * 1.5 * wanted / vectors)
        statement = SAMPLE.format(vectors=table("vec", generation))
        rows = await (await connection.execute(statement, [share, wanted])).fetchall()
        sample = np.array([row[0].to_numpy() for row in rows], np.float32)
        if len(sample) < LEAST_FOR_BACKGROUND:
            return
        shuffled = np.random.default_rng().permutation(sample)
        half = len(shuffled) // 2
        background = float(np.mean(np.sum(shuffled[:half] * shuffled[half : 2 * half], axis=1)))
        await connection.execute(SET_BACKGROUND, [background, vectors, generation])
