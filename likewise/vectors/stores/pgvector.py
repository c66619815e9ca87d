"""Vectors in Postgres: one table of half-precision vectors a generation, scanned whole or by an HNSW index."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pgvector import HalfVector
from psycopg.sql import SQL, Composable, Composed

from likewise.db.collections import Generation
from likewise.db.transaction import EVERY_ROW, USUAL_EF_SEARCH, Plan, Tx, table
from likewise.embedding.provider import Matrix, Vector
from likewise.observe.steps import search_plan
from likewise.vectors.store import FilterSubset, IdSubset, Ranking, TextReading

# Recall@100 of 0.98 at 100,000 vectors with the usual, 0.96 with half of it; each tenfold needs so much more.
EF_TENFOLD = 60
USUAL_TOTAL = 100_000
# So many times as many as are wanted are in view at least; of deeper pages, which no recall was measured for.
IN_VIEW = 1.5
# pgvector's own upper bound.
MAX_EF_SEARCH = 1000
# Of more than this share of a table its rows are read one after the other (0.2 us each), else by their ids (1.1 us).
SCATTERED_SHARE = 0.2
# So few are fetched by their ids whatever they are of: the counts of a collection may be some seconds old.
FEW = 1_000

INSERT_BULK = "COPY {vectors} (content, embedding, tokens, truncated, chars_read) FROM STDIN WITH (FORMAT binary)"
PRESENT = "SELECT content FROM {vectors} WHERE content = ANY (%s::bigint[])"
FETCH = "SELECT content, embedding FROM {vectors} WHERE content = ANY (%s::bigint[])"

# Relaxed order gives rows nearly in order; the outer sort puts them right.
NEAREST_BY_INDEX = """
    SELECT content, 1 - distance FROM (
        SELECT v.content, v.embedding <=> %(query)b AS distance FROM {vectors} v
        ORDER BY v.embedding <=> %(query)b LIMIT %(k)s
    ) nearest ORDER BY distance, content
"""
# Nearest first, and asked one by one whether a record of theirs fits, until enough do.
NEAREST_FITTING = """
    SELECT content, 1 - distance FROM (
        SELECT v.content, v.distance FROM (
            SELECT content, embedding <=> %(query)b AS distance FROM {vectors}
            ORDER BY embedding <=> %(query)b LIMIT %(visits)s
        ) v WHERE {fits} LIMIT %(k)s
    ) nearest ORDER BY distance, content
"""
# `+ 0` keeps an index of vectors away, which would not be exact. The distance is worked out once a row.
NEAREST_OF_ALL = """
    SELECT content, 1 - distance FROM (
        SELECT v.content, (v.embedding <=> %(query)b) + 0 AS distance FROM {vectors} v WHERE {fits}
        ORDER BY distance, v.content LIMIT %(k)s
    ) nearest
"""
AMONG = SQL("v.content = ANY (%(among)s)")
# By a hash of the ids: that of ANY is made only when the array is known to the planner, which takes it longer.
AMONG_BY_HASH = SQL("v.content IN (SELECT unnest(%(among)s))")
# OFFSET 0 has it asked of one vector after the other, and not of all records first.
FITTING = SQL("EXISTS (SELECT FROM {pointing} WHERE {content} = v.content AND {fits} OFFSET 0)")
ANY = SQL("true")


class PgvectorStore:
    """The default store: the rows themselves."""

    async def upsert(
        self, tx: Tx, generation: Generation, ids: Sequence[int], vectors: Matrix, readings: Sequence[TextReading]
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
        self,
        tx: Tx,
        generation: Generation,
        query: Vector,
        k: int,
        among: IdSubset | FilterSubset | None = None,
        *,
        total: int,
    ) -> Ranking:
        """See VectorStore.search. Whole collections go by the index once it is there, else by a scan."""
        asked: dict[str, Any] = {"query": HalfVector(query.astype(np.float16)), "k": k}
        fits: Composable = ANY
        statement, plan, name = NEAREST_OF_ALL, EVERY_ROW, "scan"
        if isinstance(among, IdSubset):
            asked["among"], fits = among.ids, AMONG_BY_HASH
            if among.share < SCATTERED_SHARE or len(among.ids) <= FEW:
                fits, plan, name = AMONG, Plan(), "among"
        elif isinstance(among, FilterSubset):
            # Those whom the filter turns away are in view as well, half of all that have to be visited: of a million
            # that finds 0.985 of the nearest ten under a filter of a tenth, a third 0.978, all of them 0.995.
            in_view = max(2 * k, round(k / max(among.share, 1e-6) / (2 * IN_VIEW)))
            where = among.where
            fits = FITTING.format(pointing=where.pointing, content=where.content, fits=where.sql)
            asked |= where.parameters | {"visits": among.max_visited}
            plan = Plan(ef_search=ef_search(in_view, total), max_scanned=among.max_visited)
            statement, name = NEAREST_FITTING, "index"
        elif generation.index_state == "ready":
            statement, plan, name = NEAREST_BY_INDEX, Plan(ef_search=ef_search(k, total)), "index"
        search_plan(name)
        rows = await tx.rows(_named(statement, generation, fits=fits), asked, plan=plan)
        return Ranking(tuple(row[0] for row in rows), tuple(row[1] for row in rows), plan=name)

    async def fetch(self, tx: Tx, generation: Generation, ids: Sequence[int]) -> Mapping[int, Vector]:
        """See VectorStore.fetch."""
        rows = await tx.rows(_named(FETCH, generation), [list(ids)])
        return {int(content): embedding.to_numpy().astype(np.float32) for content, embedding in rows}

    async def forget(self, tx: Tx, ids: Sequence[int]) -> None:
        """See VectorStore.forget. The rows were all that there was."""

    async def drop(self, tx: Tx, generations: Sequence[int]) -> None:
        """See VectorStore.drop. The tables were all that there was."""


def ef_search(k: int, total: int) -> int:
    """Return how many vectors a search of the index for the k nearest of about `total` keeps in view."""
    tenfolds = max(0.0, math.log10(max(1, total) / USUAL_TOTAL))
    return min(MAX_EF_SEARCH, max(round(IN_VIEW * k), USUAL_EF_SEARCH + round(EF_TENFOLD * tenfolds)))


def _named(statement: str, generation: Generation, **parts: Composable) -> Composed:
    return SQL(statement).format(vectors=table("vec", generation.id), **parts)
