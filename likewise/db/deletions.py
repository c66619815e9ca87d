"""Records as they go, and with the last of a content everything of it: vector, words, its place in the queue."""

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg.sql import SQL

from likewise.cleaning import storable
from likewise.db import collections, jobs, terms
from likewise.db.failures import Contended
from likewise.db.transaction import Parameters, Statement, Tx, table

EMPTY = SQL("""
    SELECT left_one FROM unnest(%s::bigint[]) AS left_one
    WHERE NOT EXISTS (SELECT 1 FROM records r WHERE r.content = left_one)
""")
FIND = SQL("SELECT pk, content FROM records WHERE collection = %s AND id = ANY (%s::text[])")
FIND_OF_PARENT = SQL("SELECT pk, content FROM records WHERE collection = %s AND parent = %s")
FIND_BY_FIELD = SQL("""
    SELECT r.pk, r.content FROM record_fields f JOIN records r ON r.pk = f.record
    WHERE f.collection = %s AND f.field = %s AND f.value = %s
""")
HOLD_THESE = SQL("SELECT 1 FROM contents WHERE pk = ANY (%s::bigint[]) ORDER BY pk FOR UPDATE")
DROP_RECORDS = SQL("""
    DELETE FROM records r USING unnest(%s::bigint[], %s::bigint[]) AS i (pk, content)
    WHERE r.pk = i.pk AND r.content = i.content
""")
DROP_WAITING = SQL("DELETE FROM waiting WHERE content = ANY (%s::bigint[]) AND generation = ANY (%s::int[])")
DROP_VECTORS = SQL("DELETE FROM {vectors} WHERE content = ANY (%s::bigint[])")
DROP_CONTENTS = SQL("DELETE FROM contents WHERE pk = ANY (%s::bigint[]) RETURNING text_hash")
# Retired ones included: they keep their vectors until they are dropped.
ALL_GENERATIONS = SQL("SELECT id FROM generations WHERE collection = %s")


@dataclass(frozen=True)
class Deletion:
    """Deleted records, counted, and the hashes of the texts that went with their last."""

    records: int = 0
    gone: Sequence[bytes] = ()


async def delete(tx: Tx, collection: int, ids: Sequence[str], *, keep_terms: bool, alone: bool = False) -> Deletion:
    """Delete those of the records that are there, and with the last of a content everything of it.

    Raises:
        Contended: another writer was at them meanwhile; try the whole transaction again.
    """
    stored = [one for one in ids if storable(one)]
    if not stored:
        return Deletion()
    return await _delete(tx, collection, (FIND, [collection, stored]), keep_terms=keep_terms, alone=alone)


async def delete_parent(tx: Tx, collection: int, parent: str, *, keep_terms: bool, alone: bool = False) -> Deletion:
    """Delete all records of a parent, and with the last of a content everything of it."""
    if not storable(parent):
        return Deletion()
    return await _delete(tx, collection, (FIND_OF_PARENT, [collection, parent]), keep_terms=keep_terms, alone=alone)


async def delete_with(
    tx: Tx, collection: int, field: str, value: str, *, keep_terms: bool, alone: bool = False
) -> Deletion:
    """Delete all records that have this text in an indexed field, and with the last of a content everything of it."""
    if not storable(value):
        return Deletion()
    find = (FIND_BY_FIELD, [collection, field, value])
    return await _delete(tx, collection, find, keep_terms=keep_terms, alone=alone, again=True)


async def _delete(
    tx: Tx,
    collection: int,
    find: tuple[Statement, Parameters],
    *,
    keep_terms: bool,
    alone: bool,
    again: bool = False,
) -> Deletion:
    """Delete what a statement finds.

    Args:
        again: whether it asks for what a writer may change of a record without giving it another content.
    """
    lock = (collections.LOCK if alone else collections.SHARE, [collection])
    _, found = await tx.together(lock, find)
    if not found:
        return Deletion()
    contents = sorted({int(content) for _, content in found})
    await tx.execute(HOLD_THESE, [contents])
    # Who changes a record holds its content: what is found now stays so.
    if again and sorted(await tx.rows(*find)) != sorted(found):
        raise Contended("40001", "records")
    await leave(tx, [(pk, content) for pk, content in found])
    return Deletion(len(found), await drop_empty(tx, collection, contents, jobs.DELETED, keep_terms=keep_terms))


async def leave(tx: Tx, leaving: Sequence[tuple[int, int]]) -> None:
    """Delete records, given with their contents, whose update locks the caller holds.

    Raises:
        Contended: another deleted one, or pointed it elsewhere, meanwhile; try the whole transaction again.
    """
    if not leaving:
        return
    pks, contents = (list(column) for column in zip(*leaving, strict=True))
    dropped = await tx.execute(DROP_RECORDS, [pks, contents])
    if dropped.rowcount < len(leaving):
        raise Contended("40001", "records")


async def drop_empty(tx: Tx, collection: int, contents: Sequence[int], why: str, *, keep_terms: bool) -> list[bytes]:
    """Delete contents that no record points at, and return their hashes; the caller holds their update locks.

    Jobs that wait for them are told why. A job whose own record is gone goes on waiting for a content that others still
    point at: it is embedded for them, and the job succeeds.
    """
    if not contents:
        return []
    empty = [int(row[0]) for row in await tx.rows(EMPTY, [list(contents)])]
    if not empty:
        return []
    generations = [int(row[0]) for row in await tx.rows(ALL_GENERATIONS, [collection])]
    *_, dropped = await tx.together(
        (DROP_WAITING, [empty, generations]),
        *((DROP_VECTORS.format(vectors=table("vec", generation)), [empty]) for generation in generations),
        *([terms.deletion(collection, empty)] if keep_terms else ()),
        (DROP_CONTENTS, [empty]),
    )
    await jobs.withdraw(tx, empty, why)
    return [bytes(row[0]) for row in dropped]
