"""Records and the contents they point at, as they are written and deleted.

Locks are taken in one order everywhere: the collection's advisory lock, contents, new records, changed records; rows of
a batch by their keys. What hangs on a content (waiting, vec_, terms_) is written by who holds its lock, or skipped
where it is locked.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

import orjson
from psycopg.sql import SQL

from likewise.cleaning import storable
from likewise.db import collections, terms
from likewise.db.failures import CollectionGone, Contended
from likewise.db.pool import Tx, table
from likewise.db.where import INDEXED_CHARS
from likewise.kind import Payload

Lane = int
INTERACTIVE: Lane = 0
BULK: Lane = 1

# Writers share a collection; making, switching and retiring a generation, and dropping, exclude them. So does a writer
# that others were in the way of: alone it cannot fail again.
SHARE_COLLECTION = SQL("SELECT pg_advisory_xact_lock_shared(7719, %s)")
HAVE_COLLECTION = SQL("SELECT lock_collection(%s)")

# The records as they stand, beside those that come: what is there, and whether it is the same in everything.
COMPARE = SQL("""
    SELECT i.place, r.pk, r.content,
           c.text_hash = i.text_hash AND r.payload = i.payload AND r.parent IS NOT DISTINCT FROM i.parent
           AND r.status IS NOT DISTINCT FROM i.status AND r.occurred_at IS NOT DISTINCT FROM i.occurred_at
    FROM unnest(%s::int[], %s::text[], %s::bytea[], %s::jsonb[], %s::text[], %s::text[], %s::timestamptz[])
         AS i (place, id, text_hash, payload, parent, status, occurred_at)
    JOIN records r ON r.collection = %s AND r.id = i.id
    JOIN contents c ON c.pk = r.content
""")
ADD_CONTENTS = SQL("""
    INSERT INTO contents (tenant, collection, text_hash, text, chars)
    SELECT %s, %s, i.text_hash, i.text, i.chars
    FROM unnest(%s::bytea[], %s::text[], %s::int[]) WITH ORDINALITY AS i (text_hash, text, chars, place)
    ORDER BY i.place
    ON CONFLICT (collection, text_hash) DO NOTHING RETURNING pk, text_hash
""")
# A key-share lock keeps the contents that we shall point at; an update lock those that we may leave empty.
KEEP_CONTENTS = SQL("""
    SELECT pk, text_hash FROM contents WHERE collection = %s AND text_hash = ANY (%s::bytea[]) ORDER BY pk FOR KEY SHARE
""")
HOLD_CONTENTS = SQL("""
    SELECT pk, text_hash FROM contents
    WHERE pk IN (SELECT pk FROM contents WHERE collection = %s AND text_hash = ANY (%s::bytea[])
                 UNION SELECT unnest(%s::bigint[])) ORDER BY pk FOR UPDATE
""")
KNOWN = SQL("SELECT text_hash FROM contents WHERE collection = %s AND text_hash = ANY (%s::bytea[])")
ADD_RECORDS = SQL("""
    INSERT INTO records (tenant, collection, id, content, parent, status, occurred_at, payload)
    SELECT %s, %s, i.id, i.content, i.parent, i.status, i.occurred_at, i.payload
    FROM unnest(%s::text[], %s::bigint[], %s::text[], %s::text[], %s::timestamptz[], %s::jsonb[]) WITH ORDINALITY
         AS i (id, content, parent, status, occurred_at, payload, place) ORDER BY i.place
    ON CONFLICT (collection, id) DO NOTHING RETURNING pk, id
""")
LOCK_RECORDS = SQL("SELECT pk, content FROM records WHERE pk = ANY (%s::bigint[]) ORDER BY id FOR UPDATE")
CHANGE_RECORDS = SQL("""
    UPDATE records r SET content = i.content, parent = i.parent, status = i.status, occurred_at = i.occurred_at,
           payload = i.payload, updated_at = now()
    FROM unnest(%s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::timestamptz[], %s::jsonb[])
         AS i (pk, content, parent, status, occurred_at, payload)
    WHERE r.pk = i.pk
""")
DROP_FIELDS = SQL("DELETE FROM record_fields WHERE record = ANY (%s::bigint[])")
ADD_FIELDS = SQL("""
    INSERT INTO record_fields (tenant, collection, field, value, number, element, record, content)
    SELECT %s, %s, i.field, i.value, i.number, i.element, i.record, i.content
    FROM unnest(%s::text[], %s::text[], %s::float8[], %s::bool[], %s::bigint[], %s::bigint[])
         AS i (field, value, number, element, record, content)
""")
ADD_WAITING = SQL("""
    INSERT INTO waiting (tenant, generation, content, lane)
    SELECT %s, g, c, %s FROM unnest(%s::bigint[]) AS c CROSS JOIN unnest(%s::int[]) AS g ORDER BY g, c
    ON CONFLICT (generation, content) DO NOTHING
""")
EMPTY = SQL("""
    SELECT left_one FROM unnest(%s::bigint[]) AS left_one
    WHERE NOT EXISTS (SELECT 1 FROM records r WHERE r.content = left_one)
""")
FIND = SQL("SELECT pk, content FROM records WHERE collection = %s AND id = %s")
HOLD_CONTENT = SQL("SELECT 1 FROM contents WHERE pk = %s FOR UPDATE")
DROP_RECORD = SQL("DELETE FROM records WHERE pk = %s AND content = %s")
DROP_WAITING = SQL("DELETE FROM waiting WHERE content = ANY (%s::bigint[]) AND generation = ANY (%s::int[])")
DROP_CONTENTS = SQL("DELETE FROM contents WHERE pk = ANY (%s::bigint[])")
# Retired ones included: they keep their vectors until they are dropped.
ALL_GENERATIONS = SQL("SELECT id FROM generations WHERE collection = %s")


@dataclass(frozen=True)
class PreparedRecord:
    """A record ready for its row: text cleaned and hashed, payload as JSON."""

    id: str
    text: str
    text_hash: bytes
    payload: Payload
    payload_json: str
    parent: str | None
    status: str | None
    occurred_at: datetime | None


@dataclass(frozen=True)
class Written:
    """What a batch did: how many records of each outcome, and the contents that they all point at now."""

    created: int
    changed: int
    unchanged: int
    contents: tuple[int, ...]
    new_contents: Mapping[bytes, int]


def text_hash(text: str) -> bytes:
    """The key of a content within its collection."""
    return sha256(text.encode()).digest()


async def write(
    tx: Tx,
    collection: int,
    records: Sequence[PreparedRecord],
    *,
    indexed: Sequence[str],
    lane: Lane,
    keep_text: bool,
    alone: bool = False,
) -> Written:
    """Store a batch of records with distinct ids, sorted by id, in the order of the locks.

    Args:
        alone: whether other writers wait meanwhile.

    Raises:
        Contended: another writer stored one of these ids meanwhile; try the whole transaction again.
        CollectionGone: the collection was dropped.
    """
    await tx.execute(HAVE_COLLECTION if alone else SHARE_COLLECTION, [collection])
    generations = await collections.live_generations(tx, collection)
    if not generations:
        raise CollectionGone
    present, same = await _compare(tx, collection, records)
    fresh = [record for place, record in enumerate(records) if place not in same]
    unchanged = {content for place, (_, content) in present.items() if place in same}
    if not fresh:
        return Written(0, 0, len(records), tuple(sorted(unchanged)), {})
    old = {records[place].id: (pk, content) for place, (pk, content) in present.items() if place not in same}
    added, by_hash = await _get_or_make_contents(tx, collection, fresh, old, keep_text=keep_text)
    # New ones first: an insert waits for whoever changes a row of its id, and must keep nobody waiting meanwhile.
    made = await _add(tx, collection, [record for record in fresh if record.id not in old], by_hash)
    left = await _change(tx, [record for record in fresh if record.id in old], old, by_hash)
    pks = {**{id_: pk for id_, (pk, _) in old.items()}, **made}
    if indexed:
        await _write_fields(tx, collection, fresh, pks, by_hash, indexed, changed=[pk for pk, _ in old.values()])
    if added:
        await tx.execute(ADD_WAITING, [tx.tenant, lane, sorted(added.values()), generations])
    await _drop_empty(tx, collection, sorted(left))
    contents = unchanged | {by_hash[record.text_hash] for record in fresh}
    return Written(len(made), len(old), len(same), tuple(sorted(contents)), added)


async def delete(tx: Tx, collection: int, record: str, *, alone: bool = False) -> bool:
    """Take a record away, and its content with everything of it if that was the last; False if it was not there."""
    if not storable(record):
        return False
    await tx.execute(HAVE_COLLECTION if alone else SHARE_COLLECTION, [collection])
    found = await tx.row(FIND, [collection, record])
    if found is None:
        return False
    pk, content = found
    await tx.execute(HOLD_CONTENT, [content])
    gone = await tx.execute(DROP_RECORD, [pk, content])
    if gone.rowcount == 0:
        # It was deleted or pointed elsewhere while we waited for the lock: look again.
        raise Contended("40001", "records")
    await _drop_empty(tx, collection, [content])
    return True


async def known(tx: Tx, collection: int, hashes: Sequence[bytes]) -> frozenset[bytes]:
    """Which of these texts are contents already."""
    return frozenset(bytes(row[0]) for row in await tx.rows(KNOWN, [collection, list(hashes)]))


async def _compare(
    tx: Tx, collection: int, records: Sequence[PreparedRecord]
) -> tuple[dict[int, tuple[int, int]], set[int]]:
    columns = [
        list(range(len(records))),
        [record.id for record in records],
        [record.text_hash for record in records],
        [record.payload_json for record in records],
        [record.parent for record in records],
        [record.status for record in records],
        [record.occurred_at for record in records],
    ]
    rows = await tx.rows(COMPARE, [*columns, collection])
    present = {int(place): (int(pk), int(content)) for place, pk, content, _ in rows}
    return present, {int(place) for place, _, _, same in rows if same}


async def _get_or_make_contents(
    tx: Tx, collection: int, fresh: Sequence[PreparedRecord], old: Mapping[str, tuple[int, int]], *, keep_text: bool
) -> tuple[dict[bytes, int], dict[bytes, int]]:
    """The contents that were made, and all that the records point at, by hash."""
    texts = {record.text_hash: record.text for record in fresh}
    # In the order of their hashes, so that two writers of the same texts wait for each other in one direction only.
    hashes = sorted(texts)
    columns = [hashes, [texts[one] if keep_text else None for one in hashes], [len(texts[one]) for one in hashes]]
    added = {bytes(key): int(pk) for pk, key in await tx.rows(ADD_CONTENTS, [tx.tenant, collection, *columns])}
    leaving = sorted({content for _, content in old.values()})
    if leaving:
        rows = await tx.rows(HOLD_CONTENTS, [collection, hashes, leaving])
    else:
        rows = await tx.rows(KEEP_CONTENTS, [collection, [one for one in hashes if one not in added]])
    by_hash = {**{bytes(key): int(pk) for pk, key in rows}, **added}
    if any(one not in by_hash for one in hashes):
        # One that was there when we inserted is gone now: its last record left.
        raise Contended("40001", "contents")
    return added, by_hash


async def _change(
    tx: Tx, changed: Sequence[PreparedRecord], old: Mapping[str, tuple[int, int]], by_hash: Mapping[bytes, int]
) -> set[int]:
    """Point records elsewhere; returns the contents that they left."""
    if not changed:
        return set()
    rows = await tx.rows(LOCK_RECORDS, [[old[record.id][0] for record in changed]])
    locked = {int(pk): int(content) for pk, content in rows}
    if any(locked.get(old[record.id][0]) != old[record.id][1] for record in changed):
        raise Contended("40001", "records")
    columns = [[old[record.id][0] for record in changed], *_columns(changed, by_hash)]
    await tx.execute(CHANGE_RECORDS, columns)
    return {old[record.id][1] for record in changed if by_hash[record.text_hash] != old[record.id][1]}


async def _add(tx: Tx, collection: int, new: Sequence[PreparedRecord], by_hash: Mapping[bytes, int]) -> dict[str, int]:
    if not new:
        return {}
    columns = [[record.id for record in new], *_columns(new, by_hash)]
    made = {str(id_): int(pk) for pk, id_ in await tx.rows(ADD_RECORDS, [tx.tenant, collection, *columns])}
    if len(made) != len(new):
        raise Contended("40001", "records")
    return made


def _columns(records: Sequence[PreparedRecord], by_hash: Mapping[bytes, int]) -> list[list[Any]]:
    return [
        [by_hash[record.text_hash] for record in records],
        [record.parent for record in records],
        [record.status for record in records],
        [record.occurred_at for record in records],
        [record.payload_json for record in records],
    ]


async def _write_fields(
    tx: Tx,
    collection: int,
    records: Sequence[PreparedRecord],
    pks: Mapping[str, int],
    by_hash: Mapping[bytes, int],
    indexed: Sequence[str],
    *,
    changed: Sequence[int],
) -> None:
    if changed:
        await tx.execute(DROP_FIELDS, [list(changed)])
    rows = [
        (name, value, number, element, pks[record.id], by_hash[record.text_hash])
        for record in records
        for name in indexed
        for value, number, element in field_values(record.payload, name)
    ]
    if rows:
        await tx.execute(ADD_FIELDS, [tx.tenant, collection, *(list(column) for column in zip(*rows, strict=True))])


def field_values(payload: Payload, name: str) -> Iterator[tuple[str | None, float | None, bool]]:
    """What the index knows of a field: a string's beginning or a number; of a list, each such element."""
    value = payload_field(payload, name)
    is_list = isinstance(value, list)
    for one in value if is_list else [value]:
        if isinstance(one, str):
            yield one[:INDEXED_CHARS], None, is_list
        elif isinstance(one, int | float) and not isinstance(one, bool):
            yield None, float(one), is_list


def payload_field(payload: Payload, name: str) -> Any:
    """A field by its literal name, else by a path; None if it is absent."""
    if name in payload:
        return payload[name]
    found: Any = payload
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return None
        found = found[part]
    return found


async def _drop_empty(tx: Tx, collection: int, contents: Sequence[int]) -> None:
    """Take away contents that no record points at; the caller holds their update locks."""
    if not contents:
        return
    empty = [int(row[0]) for row in await tx.rows(EMPTY, [list(contents)])]
    if not empty:
        return
    generations = [int(row[0]) for row in await tx.rows(ALL_GENERATIONS, [collection])]
    await tx.execute(DROP_WAITING, [empty, generations])
    for generation in generations:
        await tx.execute(
            SQL("DELETE FROM {} WHERE content = ANY (%s::bigint[])").format(table("vec", generation)), [empty]
        )
    await terms.delete(tx, collection, empty)
    await tx.execute(DROP_CONTENTS, [empty])


def payload_json(payload: Payload) -> str:
    """A payload as JSON text."""
    return orjson.dumps(payload).decode()
