"""Vectors in Postgres: one table of half-precision vectors a generation, scanned whole or by an HNSW index."""

from collections.abc import Mapping, Sequence

import numpy as np
from pgvector import HalfVector
from psycopg.sql import SQL, Composed

from likewise.db.collections import Generation
from likewise.db.pool import Tx, table
from likewise.observe.steps import search_plan
from likewise.vectors.store import Matrix, Ranking, Reading, Vector

# Recall@10 of 0.988 at 93,000 vectors; half of that finds 0.95.
LEAST_EF_SEARCH = 200
# pgvector's own upper bound.
MOST_EF_SEARCH = 1000

INSERT_BULK = "COPY {vectors} (content, embedding, tokens, truncated, chars_read) FROM STDIN WITH (FORMAT binary)"
PRESENT = "SELECT content FROM {vectors} WHERE content = ANY (%s::bigint[])"
FETCH = "SELECT content, embedding FROM {vectors} WHERE content = ANY (%s::bigint[])"
DELETE = "DELETE FROM {vectors} WHERE content = ANY (%s::bigint[])"

TUNE = SQL("""
    SELECT set_config('hnsw.ef_search', %s, true), set_config('hnsw.iterative_scan', 'relaxed_order', true),
           set_config('enable_seqscan', 'off', true)
""")
# Relaxed order gives rows nearly in order; the outer sort puts them right.
NEAREST_BY_INDEX = """
    SELECT content, 1 - distance FROM (
        SELECT content, embedding <=> %s AS distance FROM {vectors} ORDER BY embedding <=> %s LIMIT %s
    ) nearest ORDER BY distance, content
"""
NEAREST_BY_SCAN = """
    SELECT content, 1 - (embedding <=> %s) FROM {vectors} ORDER BY (embedding <=> %s) + 0, content LIMIT %s
"""
NEAREST_AMONG = """
    SELECT content, 1 - (embedding <=> %s) FROM {vectors}
    WHERE content = ANY (%s::bigint[]) ORDER BY (embedding <=> %s) + 0, content LIMIT %s
"""


class PgvectorStore:
    """The default store: the rows themselves."""

    async def upsert(
        self, tx: Tx, generation: Generation, ids: Sequence[int], vectors: Matrix, readings: Sequence[Reading]
    ) -> None:
        """See VectorStore.upsert."""
        present = {int(row[0]) for row in await tx.rows(_named(PRESENT, generation), [list(ids)])}
        rows = [
            (content, HalfVector(vector), reading.tokens, reading.truncated, reading.chars_read)
            for content, vector, reading in zip(ids, vectors.astype(np.float16), readings, strict=True)
            if content not in present
        ]
        if rows:
            await tx.copy_in(_named(INSERT_BULK, generation), ("int8", "halfvec", "int4", "int4", "int4"), rows)

    async def search(
        self, tx: Tx, generation: Generation, query: Vector, k: int, among: Sequence[int] | None = None
    ) -> Ranking:
        """See VectorStore.search. Whole collections go by the index once it is there, else by a scan."""
        half = HalfVector(query.astype(np.float16))
        search_plan("among" if among is not None else "index" if generation.index_state == "ready" else "scan")
        if among is not None:
            rows = await tx.rows(_named(NEAREST_AMONG, generation), [half, list(among), half, k])
        elif generation.index_state == "ready":
            ef_search = min(MOST_EF_SEARCH, max(2 * k, LEAST_EF_SEARCH))
            await tx.execute(TUNE, [str(ef_search)])
            rows = await tx.rows(_named(NEAREST_BY_INDEX, generation), [half, half, k])
        else:
            rows = await tx.rows(_named(NEAREST_BY_SCAN, generation), [half, half, k])
        return Ranking(tuple(int(row[0]) for row in rows), tuple(float(row[1]) for row in rows))

    async def fetch(self, tx: Tx, generation: Generation, ids: Sequence[int]) -> Mapping[int, Vector]:
        """See VectorStore.fetch."""
        rows = await tx.rows(_named(FETCH, generation), [list(ids)])
        return {int(content): embedding.to_numpy().astype(np.float32) for content, embedding in rows}

    async def delete(self, tx: Tx, generation: Generation, ids: Sequence[int]) -> None:
        """See VectorStore.delete."""
        await tx.execute(_named(DELETE, generation), [list(ids)])


def _named(statement: str, generation: Generation) -> Composed:
    return SQL(statement).format(vectors=table("vec", generation.id))
