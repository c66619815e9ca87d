"""Records as they are read: one by its id, those of a ranking's contents, those that fit a filter, and how many."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pgvector import HalfVector
from psycopg.sql import SQL, Composable

from likewise.cleaning import storable
from likewise.db.arrays import BigintArray
from likewise.db.transaction import BY_VALUES, EVERY_ROW, Plan, Tx, table
from likewise.db.where import Where, json_value
from likewise.filters import Field

COLUMNS = SQL("""
    r.id, c.text, r.payload, r.parent, r.status, r.occurred_at, r.created_at, r.updated_at,
    r.pk, r.content, c.state, c.reason, c.chars, v.truncated, v.tokens, v.chars_read
""")
# Without the vector's table: a search that begins here must not hold it before that of the terms.
POINTED = SQL("SELECT pk, content FROM records WHERE collection = %s AND id = %s")
POINTED_BESIDE = SQL("""
    SELECT r.pk, b.content FROM records r LEFT JOIN record_contents b ON b.record = r.pk AND b.view = %s
    WHERE r.collection = %s AND r.id = %s
""")
ONE = SQL("""
    SELECT {columns} FROM records r JOIN contents c ON c.pk = r.content LEFT JOIN {vectors} v ON v.content = r.content
    WHERE r.collection = %s AND r.id = %s
""")
# The records of every content that a ranking gave, joined under row-level security, oldest first. Only those that are
# answered are read whole: texts and payloads of the others never leave the database.
OF_CONTENTS = SQL("""
    SELECT {columns}, best.content, best.similarity FROM (
        SELECT r.pk, wanted.content, wanted.place, {similarity} AS similarity
        FROM unnest(%(contents)s) WITH ORDINALITY AS wanted (content, place)
        CROSS JOIN LATERAL (
            SELECT {of_each} FROM {pointing}
            WHERE {content} = wanted.content AND r.pk IS DISTINCT FROM %(without)s AND {condition}
            ORDER BY {by} LIMIT %(offset)s + %(limit)s
        ) r
        LEFT JOIN {compared} v ON v.content = wanted.content
        WHERE {near}
        ORDER BY wanted.place, r.pk LIMIT %(limit)s OFFSET %(offset)s
    ) best
    JOIN records r ON r.pk = best.pk JOIN contents c ON c.pk = r.content LEFT JOIN {vectors} v ON v.content = r.content
    ORDER BY best.place, best.pk
""")
# The contents of a ranking that have a record which fits, each with how many do and when. Only those that are answered
# are counted: a text may have a million records.
OCCURRENCES = SQL("""
    SELECT best.content, c.text, seen.records, seen.first_seen, seen.last_seen, best.similarity FROM (
        SELECT wanted.content, wanted.place, {similarity} AS similarity
        FROM unnest(%(contents)s) WITH ORDINALITY AS wanted (content, place)
        LEFT JOIN {compared} v ON v.content = wanted.content
        WHERE {near} AND EXISTS (
            SELECT FROM {pointing}
            WHERE {content} = wanted.content AND r.pk IS DISTINCT FROM %(without)s AND {condition} OFFSET 0
        )
        ORDER BY wanted.place LIMIT %(limit)s OFFSET %(offset)s
    ) best
    CROSS JOIN LATERAL (
        SELECT count(*) AS records, min(coalesce(r.occurred_at, r.created_at)) AS first_seen,
               max(coalesce(r.occurred_at, r.created_at)) AS last_seen
        FROM {pointing} WHERE {content} = best.content AND r.pk IS DISTINCT FROM %(without)s AND {condition}
    ) seen
    JOIN contents c ON c.pk = best.content
    ORDER BY best.place
""")
# Records that were found some time ago, those of them that are there and have the same text.
STILL = SQL("""
    SELECT {columns} FROM unnest(%s::bigint[], %s::bigint[]) AS found (pk, content)
    CROSS JOIN LATERAL (
        SELECT * FROM records r WHERE r.pk = found.pk AND r.content = found.content AND r.collection = %s OFFSET 0
    ) r
    JOIN contents c ON c.pk = r.content LEFT JOIN {vectors} v ON v.content = r.content
""")
NEAR = SQL("1 - (v.embedding <=> %(query)b) >= %(min_similarity)s")
SIMILARITY = SQL("1 - (v.embedding <=> %(query)b)")
NO_SIMILARITY = SQL("NULL::float8")
FAILED = SQL("""
    SELECT r.id, coalesce(c.reason, 'failed') FROM records r JOIN contents c ON c.pk = r.content
    WHERE r.collection = %s AND r.id = ANY (%s::text[]) AND c.state = 'failed'
""")
COUNT = SQL("""
    SELECT (SELECT count(*) FROM records WHERE collection = %(collection)s),
           (SELECT count(*) FROM contents WHERE collection = %(collection)s AND view = 0),
           (SELECT count(*) FROM contents WHERE collection = %(collection)s AND view = 0 AND state = 'failed'),
           (SELECT count(*) FROM {vectors})
""")
SHARED = SQL("SELECT 1 FROM records WHERE content = %s AND pk <> %s LIMIT 1")
SHARED_BESIDE = SQL("SELECT 1 FROM record_contents WHERE content = %s AND record <> %s LIMIT 1")
MATCHING = SQL("""
    SELECT array_send(coalesce(array_agg(content), ARRAY[]::bigint[]))
    FROM (SELECT content FROM ({matching}) AS m (content) LIMIT %(max_rows)s) AS few
""")
# A few pages of the table, wherever they are.
SAMPLE = SQL("SELECT content FROM {vectors} TABLESAMPLE SYSTEM (%s) LIMIT %s")
FITTING = SQL("""
    SELECT count(DISTINCT {content}) FROM {pointing} WHERE {content} = ANY (%(sample)s) AND {condition}
""")
# The records of contents, the newest of each first.
EXPAND = SQL("""
    SELECT wanted.content, r.pk FROM unnest(%(contents)s) WITH ORDINALITY AS wanted (content, place)
    CROSS JOIN LATERAL (
        SELECT r.pk FROM {pointing}
        WHERE {content} = wanted.content AND r.pk IS DISTINCT FROM %(without)s AND {condition}
        ORDER BY r.pk DESC LIMIT %(limit)s
    ) r
    ORDER BY wanted.place, r.pk DESC
""")
# Records with how near their contents of one view are to a query.
OF_RECORDS = SQL("""
    SELECT {columns}, near.content, near.similarity FROM unnest(%(records)s) WITH ORDINALITY AS wanted (pk, place)
    LEFT JOIN LATERAL (
        SELECT {content} AS content, {similarity} AS similarity
        FROM {pointing} LEFT JOIN {compared} v ON v.content = {content} WHERE r.pk = wanted.pk
    ) near ON true
    JOIN records r ON r.pk = wanted.pk
    JOIN contents c ON c.pk = r.content LEFT JOIN {vectors} v ON v.content = r.content
    ORDER BY wanted.place
""")
# Which of these ids are records of another parent, and of which.
OF_OTHERS = SQL("""
    SELECT id, parent FROM records
    WHERE collection = %s AND id = ANY (%s::text[]) AND parent IS DISTINCT FROM %s
""")
OF_PARENT = SQL("SELECT id FROM records WHERE collection = %s AND parent = %s")


@dataclass(frozen=True)
class RecordFields:
    """The fields of a record that its callers see as they stand."""

    id: str
    text: str | None
    payload: dict[str, Any]
    parent: str | None
    status: str | None
    occurred_at: datetime | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class StoredRecord(RecordFields):
    """A record as it stands, with its content's text and state, and how many characters that has.

    `tokens` were read of it and `truncated` cut off, `chars_read` are the characters read; None without a vector.
    """

    pk: int
    content: int
    state: str
    reason: str | None
    chars: int
    truncated: int | None
    tokens: int | None
    chars_read: int | None


@dataclass(frozen=True)
class ContentOccurrences:
    """A content with its text, if that is kept, and the records that have it: how many, and from when until when.

    The time of a record is when it occurred, or else when it was stored.
    """

    content: int
    text: str | None
    records: int
    first_seen: datetime
    last_seen: datetime


@dataclass(frozen=True)
class CollectionCounts:
    """The size of a collection: records, contents, failed contents, and vectors in a generation."""

    records: int
    contents: int
    failed: int
    vectors: int


async def one(tx: Tx, collection: int, generation: int, record: str) -> StoredRecord | None:
    """Return one record by its id."""
    if not storable(record):
        return None
    statement = ONE.format(columns=COLUMNS, vectors=table("vec", generation))
    row = await tx.row(statement, [collection, record])
    return None if row is None else StoredRecord(*row)


async def pointed(tx: Tx, collection: int, record: str, view: int = 0) -> tuple[int, int | None] | None:
    """Return the keys of a record and of its content in a view, if it has one there, by the record's id."""
    if not storable(record):
        return None
    asked = (POINTED_BESIDE, [view, collection, record]) if view else (POINTED, [collection, record])
    row = await tx.row(*asked)
    return None if row is None else (int(row[0]), None if row[1] is None else int(row[1]))


@dataclass(frozen=True)
class RecordQuery:
    """A choice of records among those of some contents: `limit` (None for all) after the first `offset`.

    Those that are at least `min_similarity` similar to the vector `similar_to`, float32 (d,), if there is a bound; not
    the record `without`; and of each content one for every value of the field `one_of_each`, if that is given.
    `compared` is the generation that has the vectors of these contents, where they are not of the first view.
    """

    limit: int | None
    offset: int = 0
    without: int | None = None
    similar_to: NDArray[np.float32] | None = None
    min_similarity: float | None = None
    one_of_each: Field | None = None
    compared: int | None = None


async def of_contents(
    tx: Tx, generation: int, contents: Sequence[int], where: Where, wanted: RecordQuery, *, commit: bool = False
) -> list[tuple[StoredRecord, int, float | None]]:
    """Return the records of these contents that fit a condition, in the contents' order, with content and similarity.

    With `commit` the transaction ends in the same round trip.
    """
    asked = Where(parameters=_parameters(contents, where, wanted), prefix="group")
    grouped = None if wanted.one_of_each is None else json_value(wanted.one_of_each, asked)
    statement = OF_CONTENTS.format(
        columns=COLUMNS,
        vectors=table("vec", generation),
        of_each=SQL("r.pk") if grouped is None else SQL("DISTINCT ON ({}) r.pk").format(grouped),
        by=SQL("r.pk") if grouped is None else SQL("{}, r.pk").format(grouped),
        **_conditions(generation, where, wanted),
    )
    rows = await tx.rows(statement, asked.parameters, plan=Plan(), commit=commit)
    return [(StoredRecord(*row[:-2]), row[-2], row[-1]) for row in rows]


async def occurrences(
    tx: Tx, generation: int, contents: Sequence[int], where: Where, wanted: RecordQuery, *, commit: bool = False
) -> list[tuple[ContentOccurrences, float | None]]:
    """Return those of the contents that have a record that fits, in their order, each with its similarity.

    With `commit` the transaction ends in the same round trip.
    """
    statement = OCCURRENCES.format(**_conditions(generation, where, wanted))
    rows = await tx.rows(statement, _parameters(contents, where, wanted), plan=Plan(), commit=commit)
    return [(ContentOccurrences(*row[:-1]), row[-1]) for row in rows]


async def expand(
    tx: Tx, contents: Sequence[int], where: Where, *, limit: int, without: int | None = None
) -> list[tuple[int, int]]:
    """Return (content, record) of the records of these contents that fit, of each the newest `limit`."""
    statement = EXPAND.format(pointing=where.pointing, content=where.content, condition=where.sql)
    parameters = {**where.parameters, "contents": BigintArray.of(contents), "limit": limit, "without": without}
    return [(int(content), int(record)) for content, record in await tx.rows(statement, parameters, plan=Plan())]


async def of_records(
    tx: Tx, generation: int, records: Sequence[int], where: Where, wanted: RecordQuery
) -> list[tuple[StoredRecord, int | None, float | None]]:
    """Return records by their keys, in that order, each with its content in a condition's view and its similarity."""
    statement = OF_RECORDS.format(
        columns=COLUMNS, vectors=table("vec", generation), **_compared(generation, where, wanted)
    )
    parameters: dict[str, Any] = {"records": BigintArray.of(records)}
    if wanted.similar_to is not None:
        parameters["query"] = HalfVector(wanted.similar_to.astype(np.float16))
    return [(StoredRecord(*row[:-2]), row[-2], row[-1]) for row in await tx.rows(statement, parameters, plan=Plan())]


def _conditions(generation: int, where: Where, wanted: RecordQuery) -> dict[str, Composable]:
    return {
        **_compared(generation, where, wanted),
        "condition": where.sql,
        "near": SQL("true") if wanted.min_similarity is None else NEAR,
    }


def _compared(generation: int, where: Where, wanted: RecordQuery) -> dict[str, Composable]:
    return {
        "pointing": where.pointing,
        "content": where.content,
        "compared": table("vec", wanted.compared or generation),
        "similarity": NO_SIMILARITY if wanted.similar_to is None else SIMILARITY,
    }


def _parameters(contents: Sequence[int], where: Where, wanted: RecordQuery) -> dict[str, Any]:
    parameters = {
        **where.parameters,
        "contents": BigintArray.of(contents),
        "limit": wanted.limit,
        "offset": wanted.offset,
        "without": wanted.without,
        "min_similarity": wanted.min_similarity,
    }
    if wanted.similar_to is not None:
        parameters["query"] = HalfVector(wanted.similar_to.astype(np.float16))
    return parameters


async def still(tx: Tx, collection: int, generation: int, found: Sequence[tuple[int, int]]) -> dict[int, StoredRecord]:
    """Return those of the found records that still have the same content, by their keys."""
    columns = [[pk for pk, _ in found], [content for _, content in found]]
    statement = STILL.format(columns=COLUMNS, vectors=table("vec", generation))
    records = [StoredRecord(*row) for row in await tx.rows(statement, [*columns, collection])]
    return {record.pk: record for record in records}


async def shared(tx: Tx, content: int, record: int, view: int = 0) -> bool:
    """Return whether another record has this content too."""
    return await tx.row(SHARED_BESIDE if view else SHARED, [content, record]) is not None


async def matching_contents(tx: Tx, matching: Where, *, max_rows: int | None = None) -> BigintArray | None:
    """Return the contents that a SELECT gives, each once; None for more than `max_rows`, repetitions included."""
    parameters = {**matching.parameters, "max_rows": None if max_rows is None else max_rows + 1}
    row = await tx.row(MATCHING.format(matching=matching.sql), parameters, plan=BY_VALUES)
    found = BigintArray.of([]) if row is None else BigintArray(row[0])
    return None if max_rows is not None and len(found) > max_rows else BigintArray.of(np.unique(found.numbers()))


async def sample_of(tx: Tx, generation: int, percent: float, max_rows: int) -> BigintArray:
    """Sample contents that have a vector, from about that share of the table."""
    rows = await tx.rows(SAMPLE.format(vectors=table("vec", generation)), [percent, max_rows], plan=EVERY_ROW)
    return BigintArray.of(row[0] for row in rows)


async def count_fitting(tx: Tx, sample: BigintArray, where: Where) -> int:
    """Count those of these contents that have a record that fits."""
    statement = FITTING.format(condition=where.sql, pointing=where.pointing, content=where.content)
    return await tx.number(statement, {**where.parameters, "sample": sample}, plan=Plan())


async def of_others(tx: Tx, collection: int, ids: Sequence[str], parent: str | None) -> dict[str, str | None]:
    """Return those of the ids that are records of another parent, with that parent."""
    return {str(id_): other for id_, other in await tx.rows(OF_OTHERS, [collection, list(ids), parent])}


async def of_parent(tx: Tx, collection: int, parent: str) -> list[str]:
    """Return the ids of all records of a parent."""
    return await tx.column(OF_PARENT, [collection, parent])


async def failed(tx: Tx, collection: int, ids: Sequence[str]) -> dict[str, str]:
    """Return those of the records whose text the model could not embed, with the reason's code."""
    return {str(id_): str(reason) for id_, reason in await tx.rows(FAILED, [collection, list(ids)])}


async def count(tx: Tx, collection: int, generation: int) -> CollectionCounts:
    """Count records, contents and vectors of a collection."""
    row = await tx.row(COUNT.format(vectors=table("vec", generation)), {"collection": collection})
    return CollectionCounts(*row) if row else CollectionCounts(0, 0, 0, 0)
