"""Records as they go, and with the last of a content everything of it: vector, words, its place in the queue."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from psycopg.sql import SQL

from likewise.cleaning import storable
from likewise.db import collections, contents, jobs, terms
from likewise.db.collections import ViewRow
from likewise.db.contents import Pointers
from likewise.db.failures import Contended
from likewise.db.transaction import Tx, table

# A content is of one view, so either records point at it or what they have in other views.
EMPTY = SQL("""
    SELECT left_one FROM unnest(%s::bigint[]) AS left_one
    WHERE NOT EXISTS (SELECT 1 FROM records r WHERE r.content = left_one)
          AND NOT EXISTS (SELECT 1 FROM record_contents b WHERE b.content = left_one)
""")
FIND = SQL("SELECT r.pk, r.content, {beside} FROM records r WHERE r.collection = %s AND r.id = ANY (%s::text[])")
FIND_OF_PARENT = SQL("SELECT r.pk, r.content, {beside} FROM records r WHERE r.collection = %s AND r.parent = %s")
FIND_BY_FIELD = SQL("""
    SELECT r.pk, r.content, {beside} FROM record_fields f JOIN records r ON r.pk = f.record
    WHERE f.collection = %s AND f.field = %s AND f.value = %s
""")
NOTHING_BESIDE = SQL("NULL")
CONTENTS_BESIDE = SQL("ARRAY(SELECT b.content FROM record_contents b WHERE b.record = r.pk ORDER BY b.view)")
HOLD_THESE = SQL("SELECT 1 FROM contents WHERE pk = ANY (%s::bigint[]) ORDER BY pk FOR UPDATE")
DROP_RECORDS = SQL("""
    DELETE FROM records r USING unnest(%s::bigint[], %s::bigint[]) AS i (pk, content)
    WHERE r.pk = i.pk AND r.content = i.content
""")
DROP_WAITING = SQL("DELETE FROM waiting WHERE content = ANY (%s::bigint[]) AND generation = ANY (%s::int[])")
DROP_VECTORS = SQL("DELETE FROM {vectors} WHERE content = ANY (%s::bigint[])")
DROP_CONTENTS = SQL("DELETE FROM contents WHERE pk = ANY (%s::bigint[]) RETURNING pk, view, text_hash")


@dataclass(frozen=True)
class GoneContent:
    """A content that went with its last record: its id, its view, and the hash of its text."""

    id: int
    view: int
    text_hash: bytes


@dataclass(frozen=True)
class Deletion:
    """Deleted records, counted, and the contents that went with their last."""

    records: int = 0
    gone: Sequence[GoneContent] = ()


@dataclass(frozen=True)
class DeletionQuery:
    """A choice of records to delete, which are looked for at the moment that they go.

    `changing` says whether it asks for what a writer may change of a record without giving it another content;
    `impossible`, whether no record can be meant.
    """

    find: SQL
    values: Sequence[Any]
    changing: bool = True
    impossible: bool = False


def by_ids(ids: Sequence[str]) -> DeletionQuery:
    """Choose those of the records that are there."""
    stored = [one for one in ids if storable(one)]
    return DeletionQuery(FIND, [stored], changing=False, impossible=not stored)


def of_parent(parent: str) -> DeletionQuery:
    """Choose all records that have a parent."""
    return DeletionQuery(FIND_OF_PARENT, [parent], impossible=not storable(parent))


def with_field(field: str, value: str) -> DeletionQuery:
    """Choose all records that have a text in an indexed field."""
    return DeletionQuery(FIND_BY_FIELD, [field, value], impossible=not storable(value))


async def delete(
    tx: Tx, collection: int, query: DeletionQuery, *, views: Sequence[ViewRow], alone: bool = False
) -> Deletion:
    """Delete the records that a query finds, and with the last of a content everything of it.

    Args:
        views: all that the collection has.
        alone: whether other writers wait meanwhile.

    Raises:
        Contended: another writer was at them meanwhile; try the whole transaction again.
    """
    if query.impossible:
        return Deletion()
    several = len(views) > 1
    asked = query.find.format(beside=CONTENTS_BESIDE if several else NOTHING_BESIDE), [collection, *query.values]
    _, found = await tx.together((collections.LOCK if alone else collections.SHARE, [collection]), asked)
    if not found:
        return Deletion()
    left = sorted({int(one) for _, content, beside in found for one in (content, *(beside or ()))})
    await tx.execute(HOLD_THESE, [left])
    # Who gives a record another content holds the first's: what is found now stays so.
    if (query.changing or several) and sorted(await tx.rows(*asked)) != sorted(found):
        raise Contended("40001", "records")
    await leave(tx, [(pk, content) for pk, content, _ in found])
    return Deletion(len(found), await drop_empty(tx, collection, left, jobs.DELETED, views=views))


async def leave(tx: Tx, leaving: Sequence[tuple[int, int]], beside: Pointers = MappingProxyType({})) -> None:
    """Delete records, given with their contents, and with those beside the first view, whose update locks are held.

    Raises:
        Contended: another deleted one, or pointed it elsewhere, meanwhile; try the whole transaction again.
    """
    if not leaving:
        return
    if beside and await contents.beside(tx, [pk for pk, _ in leaving]) != beside:
        raise Contended("40001", "record_contents")
    dropped = await tx.execute(DROP_RECORDS, [list(column) for column in zip(*leaving, strict=True)])
    if dropped.rowcount < len(leaving):
        raise Contended("40001", "records")


async def drop_empty(
    tx: Tx, collection: int, left: Sequence[int], why: str, *, views: Sequence[ViewRow]
) -> list[GoneContent]:
    """Delete contents that no record points at, and return them; the caller holds their update locks.

    Jobs that wait for them are told why. A job whose own record is gone goes on waiting for a content that others still
    point at: it is embedded for them, and the job succeeds.
    """
    if not left:
        return []
    empty = await tx.column(EMPTY, [list(left)])
    if not empty:
        return []
    generations = await tx.column(collections.ALL_GENERATIONS, [collection])
    *_, dropped = await tx.together(
        (DROP_WAITING, [empty, generations]),
        *((DROP_VECTORS.format(vectors=table("vec", generation)), [empty]) for generation in generations),
        *(terms.deletion(collection, view.number, empty) for view in views if view.terms),
        (DROP_CONTENTS, [empty]),
    )
    await jobs.withdraw(tx, empty, why)
    return [GoneContent(int(pk), int(view), bytes(key)) for pk, view, key in dropped]
