"""The search statements use their indexes, as the role that serves, before and after ANALYZE."""

import random
from dataclasses import dataclass

import numpy as np
import pytest
from pgvector import HalfVector, SparseVector
from psycopg import AsyncConnection
from psycopg.sql import SQL, Composable

from likewise.db import collections, records, terms
from likewise.db.maintenance import Maintenance
from likewise.db.pool import Pool, Row, Tx, settle, table
from likewise.db.where import condition
from likewise.filters import parse
from likewise.kind import Policy
from likewise.library import Likewise
from likewise.search.analyzer import TERM_SPACE, analyze
from likewise.testing import DatabaseUrls
from likewise.vectors.stores import pgvector

CONTENTS = 6_000
WORDS = [f"word{n}" for n in range(400)]

FILL = """
    INSERT INTO contents (tenant, collection, text_hash, text, chars)
        SELECT {tenant}, {collection}, sha256(n::text::bytea), n::text, 4 FROM generate_series(1, {n}) n;
    INSERT INTO records (tenant, collection, id, content, payload)
        SELECT {tenant}, {collection}, 'r' || text, pk, jsonb_build_object('n', text::int) FROM contents;
    INSERT INTO record_fields (tenant, collection, field, number, record, content)
        SELECT {tenant}, {collection}, 'n', (payload ->> 'n')::float8, pk, content FROM records;
"""


@dataclass(frozen=True)
class Filled:
    """A collection with some thousand contents, and its HNSW index."""

    tenant: int
    collection: int
    generation: int
    pool: Pool


@pytest.fixture
async def filled(lw: Likewise, database: DatabaseUrls) -> Filled:
    """Rows made in bulk by the owner, and the index that maintenance builds."""
    await lw.collection("notes").create(policy=Policy(indexed=("n",)))
    tenant = await lw.tenant()
    async with lw.runtime.pool.tenant(tenant) as tx:
        made = await collections.named(tx, "notes")
    async with await AsyncConnection.connect(database.owner, autocommit=True) as owner:
        await settle(owner)
        # Autovacuum would ANALYZE at a moment of its own.
        for name in ("contents", "records", "record_fields", f"vec_{made.active.id}", f"terms_{made.id}"):
            await owner.execute(SQL("ALTER TABLE {} SET (autovacuum_enabled = off)").format(SQL(name)))  # type: ignore[arg-type]
        await owner.execute(FILL.format(tenant=tenant, collection=made.id, n=CONTENTS))  # type: ignore[arg-type]
        await _copy(owner, made.id, made.active.id)
    await Maintenance(database.owner, most_scanned=0).step()
    return Filled(tenant, made.id, made.active.id, lw.runtime.pool)


async def _copy(owner: AsyncConnection[Row], collection: int, generation: int) -> None:
    drawn = random.Random(1)
    pks = [int(row[0]) for row in await (await owner.execute("SELECT pk FROM contents ORDER BY pk")).fetchall()]
    vectors = np.random.default_rng(1).standard_normal((len(pks), 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    tx = Tx(owner, None, SQL("BEGIN"))
    rows = [(pk, HalfVector(vector), 3, 0, 4) for pk, vector in zip(pks, vectors.astype(np.float16), strict=True)]
    statement = SQL(pgvector.INSERT_BULK).format(vectors=table("vec", generation))
    await tx.copy_in(statement, ("int8", "halfvec", "int4", "int4", "int4"), rows)
    texts = [" ".join(drawn.choices(WORDS, k=8)) for _ in pks]
    counted = [terms.ContentTerms(pk, analyze(text)) for pk, text in zip(pks, texts, strict=True)]
    await terms.write(tx, collection, counted, 8.0)
    await tx.finish(commit=True)


async def explained(filled: Filled, *statements: tuple[Composable, object]) -> str:
    """The plan of the last statement, as the serving role, after the others ran."""
    async with filled.pool.tenant(filled.tenant) as tx:
        for statement, parameters in statements[:-1]:
            await tx.execute(statement, parameters)  # type: ignore[arg-type]
        statement, parameters = statements[-1]
        rows = await tx.rows(SQL("EXPLAIN {}").format(statement), parameters)  # type: ignore[arg-type]
    return "\n".join(str(row[0]) for row in rows)


async def plans(filled: Filled) -> dict[str, str]:
    """The plan of each statement that a search runs."""
    wanted = list(analyze("word7"))
    query = SparseVector({term - 1: 1.0 for term in wanted}, TERM_SPACE)
    vector = HalfVector(np.ones(384, np.float16) / np.float16(384**0.5))
    vectors, words = table("vec", filled.generation), table("terms", filled.collection)
    ids = list(range(1, 101))
    where = condition(parse({"n": 5}), filled.collection, ("n",))
    prefer = (terms.PREFER_INDEXES, None)
    return {
        "lexical": await explained(filled, prefer, (SQL(terms.RANK).format(terms=words), [query, wanted, query, 100])),
        "dense": await explained(
            filled,
            (pgvector.TUNE, ["200"]),
            (SQL(pgvector.NEAREST_BY_INDEX).format(vectors=vectors), [vector, vector, 100]),
        ),
        "among": await explained(
            filled, (SQL(pgvector.NEAREST_AMONG).format(vectors=vectors), [vector, ids[:5], vector, 100])
        ),
        "records of contents": await explained(
            filled,
            prefer,
            (
                records.OF_CONTENTS.format(view=records.VIEW, vectors=vectors, condition=SQL("true")),
                {"contents": ids[:10], "most": 10, "without": None},
            ),
        ),
        "one record": await explained(
            filled, (records.ONE.format(view=records.VIEW, vectors=vectors), [filled.collection, "r5"])
        ),
        "indexed filter": await explained(
            filled,
            (records.MATCHING_CONTENTS.format(condition=where.sql), {**where.parameters, "without": None}),
        ),
    }


USED = {
    "lexical": "terms_{collection}_terms",
    "dense": "vec_{generation}_embedding",
    "among": "vec_{generation}_pkey",
    "records of contents": "records_content",
    "one record": "records_collection_id_key",
    "indexed filter": "record_fields_number",
}


async def test_search_statements_use_their_indexes_before_and_after_analyze(
    filled: Filled, database: DatabaseUrls
) -> None:
    for analyzed in (False, True):
        if analyzed:
            async with await AsyncConnection.connect(database.owner, autocommit=True) as owner:
                await owner.execute("ANALYZE")
        for name, plan in (await plans(filled)).items():
            index = USED[name].format(collection=filled.collection, generation=filled.generation)
            assert index in plan, f"{name}, {analyzed=}:\n{plan}"
            assert "Seq Scan on contents" not in plan
            assert "Seq Scan on records" not in plan
