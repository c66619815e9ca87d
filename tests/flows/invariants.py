"""What must hold of the rows whenever nothing is being written."""

from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import numpy as np
from psycopg import AsyncConnection
from psycopg.sql import SQL

from likewise.db.pool import settle
from likewise.db.transaction import Row, table
from likewise.testing import FakeProvider

# Each finds rows that may not be there.
NEVER = {
    "contents without a record": """
        SELECT 1 FROM contents c WHERE NOT EXISTS (SELECT FROM records r WHERE r.content = c.pk AND c.view = 0)
        AND NOT EXISTS (SELECT FROM record_contents b WHERE b.content = c.pk AND b.view = c.view)
    """,
    "records without a content": """
        SELECT 1 FROM records r WHERE NOT EXISTS (SELECT FROM contents c WHERE c.pk = r.content)
    """,
    "records beside their content's collection": """
        SELECT 1 FROM records r JOIN contents c ON c.pk = r.content
        WHERE c.collection <> r.collection OR c.tenant <> r.tenant OR c.view <> 0
    """,
    "contents of a record in another collection or view": """
        SELECT 1 FROM record_contents b JOIN contents c ON c.pk = b.content JOIN records r ON r.pk = b.record
        WHERE (b.collection, b.tenant) <> (r.collection, r.tenant)
        OR (b.collection, b.tenant, b.view) <> (c.collection, c.tenant, c.view) OR NOT EXISTS (
            SELECT FROM collection_views v
            WHERE v.collection = b.collection AND v.view = b.view AND v.tenant = b.tenant)
    """,
    "views of no collection": """
        SELECT 1 FROM collection_views v
        WHERE NOT EXISTS (SELECT FROM collections c WHERE c.id = v.collection AND c.tenant = v.tenant)
    """,
    "contents of no collection": """
        SELECT 1 FROM contents c
        WHERE NOT EXISTS (SELECT FROM collections l WHERE l.id = c.collection AND l.tenant = c.tenant)
    """,
    "fields of no record": """
        SELECT 1 FROM record_fields f WHERE NOT EXISTS (
            SELECT FROM records r WHERE r.pk = f.record AND r.content = f.content AND r.collection = f.collection)
    """,
    "waiting for a missing content": """
        SELECT 1 FROM waiting w WHERE NOT EXISTS (
            SELECT FROM contents c JOIN generations g ON g.collection = c.collection AND g.view = c.view
            WHERE c.pk = w.content AND g.id = w.generation AND g.tenant = w.tenant)
    """,
    "failed contents in the queue": """
        SELECT 1 FROM waiting w JOIN contents c ON c.pk = w.content WHERE c.state = 'failed'
    """,
    "texts that wait sealed for nothing": """
        SELECT 1 FROM contents c WHERE c.sealed IS NOT NULL AND NOT EXISTS (
            SELECT FROM generations g JOIN waiting w ON w.generation = g.id AND w.content = c.pk
            WHERE g.collection = c.collection)
    """,
    "waiting without a text": """
        SELECT 1 FROM waiting w JOIN contents c ON c.pk = w.content WHERE c.text IS NULL AND c.sealed IS NULL
    """,
    "items of no job": """
        SELECT 1 FROM job_contents i WHERE NOT EXISTS (SELECT FROM jobs j WHERE j.id = i.job AND j.tenant = i.tenant)
    """,
    "jobs that wait for what nothing will come of": """
        SELECT 1 FROM job_contents i JOIN jobs j ON j.id = i.job WHERE i.error IS NULL AND NOT EXISTS (
            SELECT FROM waiting w WHERE w.generation = j.generation AND w.content = i.content)
    """,
    "jobs that count otherwise than their items": """
        SELECT 1 FROM jobs j WHERE j.run_after IS NULL AND (j.total - j.done, j.failed) <> (
            SELECT count(*), count(i.error) FROM job_contents i WHERE i.job = j.id)
    """,
    "jobs that ended with work left, or have not with none": """
        SELECT 1 FROM jobs j WHERE j.run_after IS NULL AND (j.ended_at IS NULL) = (j.done + j.failed = j.total)
    """,
    "ended tasks with their input": """
        SELECT 1 FROM jobs j WHERE j.ended_at IS NOT NULL AND length(j.input) > 0
    """,
    "collections without a generation": """
        SELECT 1 FROM collections c
        WHERE NOT EXISTS (SELECT FROM generations g WHERE g.id = c.active_generation AND g.collection = c.id)
    """,
    "tables of nothing": r"""
        SELECT 1 FROM pg_class t WHERE t.relnamespace = 'likewise'::regnamespace AND t.relkind = 'r'
        AND (t.relname ~ '^vec_\d+$' AND NOT EXISTS (SELECT FROM generations g WHERE t.relname = 'vec_' || g.id)
             OR t.relname ~ '^terms_\d+$' AND NOT EXISTS (SELECT FROM collections c WHERE t.relname = 'terms_' || c.id)
             OR t.relname ~ '^terms_\d+_\d+$' AND NOT EXISTS (
                SELECT FROM collection_views v WHERE v.terms AND t.relname = 'terms_' || v.collection || '_' || v.view))
    """,
}
NEVER_IN_A_GENERATION = {
    "vectors of no content": """
        SELECT 1 FROM {vectors} v
        WHERE NOT EXISTS (
            SELECT FROM contents c WHERE c.pk = v.content AND c.collection = %(collection)s AND c.view = %(view)s)
    """,
    "contents neither embedded nor waiting nor failed": """
        SELECT 1 FROM contents c WHERE c.collection = %(collection)s AND c.view = %(view)s AND c.state = 'live'
        AND NOT EXISTS (SELECT FROM {vectors} v WHERE v.content = c.pk)
        AND NOT EXISTS (SELECT FROM waiting w WHERE w.generation = %(generation)s AND w.content = c.pk)
    """,
    "contents both embedded and waiting": """
        SELECT 1 FROM waiting w JOIN {vectors} v ON v.content = w.content WHERE w.generation = %(generation)s
    """,
}
NEVER_IN_A_COLLECTION = {
    "terms of no content": """
        SELECT 1 FROM {terms} t
        WHERE NOT EXISTS (
            SELECT FROM contents c WHERE c.pk = t.content AND c.collection = %(collection)s AND c.view = %(view)s)
    """,
    "contents without terms": """
        SELECT 1 FROM contents c
        WHERE c.collection = %(collection)s AND c.view = %(view)s
        AND NOT EXISTS (SELECT FROM {terms} t WHERE t.content = c.pk)
    """,
}
GENERATIONS = SQL("SELECT id, collection, view FROM generations")
# Where no words are kept there is no table of them.
WITH_TERMS = SQL("""
    SELECT id, 0 FROM collections WHERE (policy ->> 'keep_terms')::boolean IS NOT FALSE
    UNION ALL SELECT collection, view FROM collection_views WHERE terms
""")
TEXTS = SQL("SELECT text, text_hash FROM contents WHERE text IS NOT NULL")
VECTORS = SQL(
    "SELECT c.text, v.embedding FROM {vectors} v JOIN contents c ON c.pk = v.content WHERE c.text IS NOT NULL"
)
FIELDS = SQL("""
    SELECT r.payload -> i.field,
           array_agg(coalesce(to_jsonb(f.value), to_jsonb(f.number))) FILTER (WHERE f.record IS NOT NULL)
    FROM records r JOIN collections c ON c.id = r.collection
    CROSS JOIN LATERAL jsonb_array_elements_text(c.policy -> 'indexed') AS i (field)
    LEFT JOIN record_fields f ON f.record = r.pk AND f.field = i.field
    GROUP BY r.pk, i.field
""")


async def broken(owner_url: str, provider: FakeProvider | None = None) -> dict[str, int]:
    """What does not hold, and of how many rows; with a provider each vector is compared with its own for the text."""
    async with await AsyncConnection.connect(owner_url, autocommit=True) as connection:
        await settle(connection)
        found = {name: await _count(connection, statement, {}) for name, statement in NEVER.items()}
        for generation, collection, view in await _rows(connection, GENERATIONS):
            values = {"generation": generation, "collection": collection, "view": view}
            for name, statement in NEVER_IN_A_GENERATION.items():
                found[name] = found.get(name, 0) + await _count(
                    connection, statement, values, vectors=table("vec", generation)
                )
            if provider is not None:
                statement = VECTORS.format(vectors=table("vec", generation))
                found["wrong vectors"] = await _wrong_vectors(await _rows(connection, statement), provider)
        for collection, view in await _rows(connection, WITH_TERMS):
            values = {"collection": collection, "view": view}
            for name, statement in NEVER_IN_A_COLLECTION.items():
                found[name] = found.get(name, 0) + await _count(
                    connection, statement, values, terms=table("terms", collection, view)
                )
        texts = await _rows(connection, TEXTS)
        found["wrong hashes"] = sum(sha256(text.encode()).digest() != bytes(key) for text, key in texts)
        found["wrong fields"] = sum(
            sorted(map(str, _scalars(value))) != sorted(map(str, fields or []))
            for value, fields in await _rows(connection, FIELDS)
        )
    return {name: count for name, count in found.items() if count}


async def deadlocks(owner_url: str) -> int:
    """How many deadlocks this database has seen, of sessions that have ended."""
    statement = SQL("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    async with await AsyncConnection.connect(owner_url, autocommit=True) as connection:
        return int((await _rows(connection, statement))[0][0])


async def _rows(connection: AsyncConnection[Row], statement: Any, values: Any = None) -> list[Row]:
    return await (await connection.execute(statement, values)).fetchall()


async def _count(connection: AsyncConnection[Row], statement: str, values: dict[str, Any], **names: Any) -> int:
    counted = SQL("SELECT count(*) FROM (" + statement + ") found").format(**names)  # type: ignore[arg-type]
    return int((await _rows(connection, counted, values or None))[0][0])


async def _wrong_vectors(rows: list[Row], provider: FakeProvider) -> int:
    if not rows:
        return 0
    fresh = FakeProvider(provider.dimension, max_tokens=provider.max_tokens)
    right = (await fresh.embed([text for text, _ in rows], "document")).vectors.astype(np.float16)
    return sum(not np.array_equal(stored.to_numpy(), own) for (_, stored), own in zip(rows, right, strict=True))


def _scalars(value: Any) -> Iterator[Any]:
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str):
            yield one[:256]
        elif isinstance(one, int | float) and not isinstance(one, bool):
            yield float(one) if not float(one).is_integer() else int(one)
