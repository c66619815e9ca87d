"""Records as they are read: one by its id, those of a ranking's contents, those that fit a filter, and how many."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.sql import SQL

from likewise.cleaning import storable
from likewise.db.pool import Tx, table
from likewise.db.where import Where

VIEW = SQL("""
    r.pk, r.content, r.id, c.text, r.payload, r.parent, r.status, r.occurred_at, r.created_at, r.updated_at,
    c.state, c.reason, v.truncated
""")
ONE = SQL("""
    SELECT {view} FROM records r JOIN contents c ON c.pk = r.content LEFT JOIN {vectors} v ON v.content = r.content
    WHERE r.collection = %s AND r.id = %s
""")
# Every content that a ranking gave, joined under row-level security; at most `most` records of each, oldest first.
OF_CONTENTS = SQL("""
    SELECT {view} FROM unnest(%(contents)s::bigint[]) WITH ORDINALITY AS wanted (content, place)
    CROSS JOIN LATERAL (
        SELECT r.* FROM records r WHERE r.content = wanted.content AND r.pk IS DISTINCT FROM %(without)s AND {condition}
        ORDER BY r.pk LIMIT %(most)s
    ) r
    JOIN contents c ON c.pk = r.content LEFT JOIN {vectors} v ON v.content = r.content
    ORDER BY wanted.place, r.pk
""")
FAILED = SQL("""
    SELECT r.id, coalesce(c.reason, 'failed') FROM records r JOIN contents c ON c.pk = r.content
    WHERE r.collection = %s AND r.id = ANY (%s::text[]) AND c.state = 'failed'
""")
COUNT = SQL("""
    SELECT (SELECT count(*) FROM records WHERE collection = %(collection)s),
           (SELECT count(*) FROM contents WHERE collection = %(collection)s),
           (SELECT count(*) FROM contents WHERE collection = %(collection)s AND state = 'failed'),
           (SELECT count(*) FROM {vectors})
""")
SHARED = SQL("SELECT 1 FROM records WHERE content = %s AND pk <> %s LIMIT 1")
MATCHING_CONTENTS = SQL(
    "SELECT DISTINCT r.content FROM records r WHERE {condition} AND r.pk IS DISTINCT FROM %(without)s"
)
# Which of these ids are records of another parent, and of which.
OF_OTHERS = SQL("""
    SELECT id, parent FROM records
    WHERE collection = %s AND id = ANY (%s::text[]) AND parent IS DISTINCT FROM %s
""")
OF_PARENT = SQL("SELECT id FROM records WHERE collection = %s AND parent = %s")


@dataclass(frozen=True)
class StoredRecord:
    """A record as it stands, with its content's text and state. `truncated` counts tokens; None without a vector."""

    pk: int
    content: int
    id: str
    text: str | None
    payload: dict[str, Any]
    parent: str | None
    status: str | None
    occurred_at: datetime | None
    created_at: datetime
    updated_at: datetime
    state: str
    reason: str | None
    truncated: int | None


@dataclass(frozen=True)
class Counts:
    """How much a collection holds, and how many of its contents have a vector in a generation."""

    records: int
    contents: int
    failed: int
    vectors: int


async def one(tx: Tx, collection: int, generation: int, record: str) -> StoredRecord | None:
    """One record by its id."""
    if not storable(record):
        return None
    statement = ONE.format(view=VIEW, vectors=table("vec", generation))
    row = await tx.row(statement, [collection, record])
    return None if row is None else StoredRecord(*row)


async def of_contents(
    tx: Tx, generation: int, contents: Sequence[int], where: Where, *, most: int, without: int | None
) -> list[StoredRecord]:
    """The records of these contents that fit the condition, in the contents' order."""
    statement = OF_CONTENTS.format(view=VIEW, vectors=table("vec", generation), condition=where.sql)
    parameters = {**where.parameters, "contents": list(contents), "most": most, "without": without}
    return [StoredRecord(*row) for row in await tx.rows(statement, parameters)]


async def shared(tx: Tx, content: int, record: int) -> bool:
    """Whether another record has this content too."""
    return await tx.row(SHARED, [content, record]) is not None


async def matching_contents(tx: Tx, where: Where, *, without: int | None) -> list[int]:
    """The contents of all records that fit the condition."""
    statement = MATCHING_CONTENTS.format(condition=where.sql)
    return [int(row[0]) for row in await tx.rows(statement, {**where.parameters, "without": without})]


async def of_others(tx: Tx, collection: int, ids: Sequence[str], parent: str | None) -> dict[str, str | None]:
    """Those of the ids that are records of another parent, with that parent."""
    return {str(id_): other for id_, other in await tx.rows(OF_OTHERS, [collection, list(ids), parent])}


async def of_parent(tx: Tx, collection: int, parent: str) -> list[str]:
    """The ids of all records of a parent."""
    return [str(row[0]) for row in await tx.rows(OF_PARENT, [collection, parent])]


async def failed(tx: Tx, collection: int, ids: Sequence[str]) -> dict[str, str]:
    """Those of the records whose text the model could not embed, with the reason's code."""
    return {str(id_): str(reason) for id_, reason in await tx.rows(FAILED, [collection, list(ids)])}


async def count(tx: Tx, collection: int, generation: int) -> Counts:
    """How much a collection holds."""
    row = await tx.row(COUNT.format(vectors=table("vec", generation)), {"collection": collection})
    return Counts(*row) if row else Counts(0, 0, 0, 0)
