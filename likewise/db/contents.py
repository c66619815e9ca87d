"""Contents as they are written: one for each distinct text of a view, and what has none yet waits for its vector.

Records point at their contents of the first view themselves; those that they have in other views are rows of their own.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal, NamedTuple, get_args

from psycopg import sql
from psycopg.sql import SQL

from likewise.db.arrays import BigintArray, bytea_array, text_array
from likewise.db.failures import Contended
from likewise.db.transaction import Parameters, Row, Statement, Tx, table
from likewise.embedding.provider import Vector, estimated_tokens

# From a text and its hash, what is stored of it while it waits.
Seal = Callable[[bytes, str], bytes]
# A content's key within its collection: the number of its view, and the hash of its text.
ContentKey = tuple[int, bytes]
# A record and a view, and the content that the record has there.
Pointers = Mapping[tuple[int, int], int]
# How a content is locked, the strongest first.
Strength = Literal["UPDATE", "NO KEY UPDATE", "SHARE", "KEY SHARE"]

ADD = SQL("""
    INSERT INTO contents (tenant, collection, view, text_hash, text, sealed, chars)
    SELECT %b, %b, i.view, i.text_hash, i.text, i.sealed, i.chars
    FROM unnest(%b::smallint[], %b::bytea[], %b::text[], %b::bytea[], %b::int[]) WITH ORDINALITY
         AS i (view, text_hash, text, sealed, chars, place)
    ORDER BY i.place
    ON CONFLICT (collection, view, text_hash) DO NOTHING RETURNING pk, view, text_hash
""")
# Contents that a batch refers to, and no more.
KEEP = SQL("""
    SELECT pk, view, text_hash, state = 'failed' FROM contents
    WHERE collection = %s AND view = ANY (%s::smallint[]) AND text_hash = ANY (%s::bytea[]) ORDER BY pk FOR KEY SHARE
""")
# Each as strongly as it must be, and all in one order, which two statements would not keep: those that a record leaves
# against everybody, those that are tried again against workers and other senders, the others as the caller says.
LOCK = SQL("""
    SELECT locked.pk, locked.view, locked.text_hash, locked.failed FROM (
        SELECT pk, CASE WHEN pk = ANY (%(left)s::bigint[]) THEN 'UPDATE' WHEN state = 'failed' THEN 'NO KEY UPDATE'
                        ELSE %(strength)s END AS strength
        FROM contents WHERE pk IN (
            SELECT pk FROM contents WHERE collection = %(collection)s AND view = ANY (%(views)s::smallint[])
                                          AND text_hash = ANY (%(hashes)s::bytea[])
            UNION SELECT unnest(%(contents)s::bigint[]))
        ORDER BY pk OFFSET 0
    ) wanted CROSS JOIN LATERAL ({each}) AS locked (pk, view, text_hash, failed)
""").format(
    each=SQL(" UNION ALL ").join(
        SQL("""
            SELECT * FROM (SELECT c.pk, c.view, c.text_hash, c.state = 'failed' FROM contents c
                           WHERE c.pk = wanted.pk AND wanted.strength = {} FOR {}) locked
        """).format(sql.Literal(strength), SQL(strength))
        for strength in get_args(Strength)
    )
)
# What failed is tried again when somebody sends it again, by itself as what has killed a worker is. A text that is not
# kept had left.
REVIVE = SQL("""
    UPDATE contents c SET state = 'live', reason = NULL, sealed = i.sealed
    FROM (SELECT pk FROM contents WHERE pk = ANY (%s::bigint[]) ORDER BY pk FOR NO KEY UPDATE) held
    JOIN unnest(%s::bigint[], %s::bytea[]) AS i (pk, sealed) ON i.pk = held.pk
    WHERE c.pk = held.pk AND c.state = 'failed' RETURNING c.pk
""")
# Tokens as `estimated_tokens` has them.
WAIT_AGAIN = SQL("""
    INSERT INTO waiting (tenant, generation, content, lane, tokens, request_id, alone)
    SELECT c.tenant, %b, c.pk, %b, c.chars / 4 + 1, i.request_id, true
    FROM unnest(%b::bigint[], %b::text[]) AS i (content, request_id) JOIN contents c ON c.pk = i.content
    WHERE NOT EXISTS (SELECT FROM {vectors} v WHERE v.content = c.pk) ORDER BY c.pk
    ON CONFLICT (generation, content) DO NOTHING
""")
# A text that is sent again while it waits sealed waits for as long as one that has just come.
WAIT_LONGER = SQL("""
    UPDATE waiting SET entered_at = now() WHERE content = ANY (%s::bigint[]) AND generation = ANY (%s::int[])
""")
ADD_WAITING = SQL("""
    INSERT INTO waiting (tenant, generation, content, lane, tokens, request_id)
    SELECT %b, g, c.pk, %b, c.tokens, c.request_id
    FROM unnest(%b::bigint[], %b::int[], %b::text[]) AS c (pk, tokens, request_id) CROSS JOIN unnest(%b::int[]) AS g
    ORDER BY g, c.pk
    ON CONFLICT (generation, content) DO NOTHING
""")

# What records have in the views beside the first, with the place of each record in a batch.
COMPARE_BESIDE = SQL("""
    SELECT i.place, b.view, b.content, c.text_hash, c.state = 'failed'
    FROM unnest(%b::int[], %b::text[]) AS i (place, id)
    CROSS JOIN LATERAL (SELECT pk FROM records r WHERE r.collection = %b AND r.id = i.id OFFSET 0) r
    JOIN record_contents b ON b.record = r.pk
    CROSS JOIN LATERAL (SELECT * FROM contents c WHERE c.pk = b.content OFFSET 0) c
""")
FIND_BESIDE = SQL("SELECT record, view, content FROM record_contents WHERE record = ANY (%s::bigint[])")
DROP_BESIDE = SQL("""
    DELETE FROM record_contents b USING unnest(%s::bigint[], %s::smallint[]) AS i (record, view)
    WHERE b.record = i.record AND b.view = i.view
""")
POINT_BESIDE = SQL("""
    INSERT INTO record_contents (tenant, collection, record, view, content)
    SELECT %b, %b, i.record, i.view, i.content
    FROM unnest(%b::bigint[], %b::smallint[], %b::bigint[]) AS i (record, view, content)
    ON CONFLICT (record, view) DO UPDATE SET content = excluded.content
""")


class PreparedContent(NamedTuple):
    """The content that a record is to have in one view, and the request that it came with.

    `waits` says whether a model is to embed its text. `text` is None where `vector` makes the vector of the record,
    when it turns out to be new, and then `text_hash` is of what it is made from.
    """

    # A tuple, since a batch makes one for each record: 0.3 us, and 0.8 us as a frozen dataclass.

    view: int
    text_hash: bytes
    text: str | None
    request_id: str | None = None
    waits: bool = True
    vector: Callable[[], Vector] | None = None

    @property
    def key(self) -> ContentKey:
        """The content's key within its collection."""
        return self.view, self.text_hash

    @property
    def tokens(self) -> int:
        """An estimate of what the model will read."""
        return estimated_tokens(self.text or "")


@dataclass(frozen=True)
class StoredContents:
    """Contents that fresh records point at, as they were asked for and as they are stored, by their keys.

    `added` are those that were made, `there` those that were there, and `failed` those of the latter that are to be
    tried again.
    """

    asked: Mapping[ContentKey, PreparedContent]
    by_key: Mapping[ContentKey, int]
    added: Mapping[ContentKey, int]
    there: Sequence[int]
    failed: Mapping[int, PreparedContent]


@dataclass(frozen=True)
class ContentLocks:
    """Contents that a record leaves; all to be locked beside those that fresh records point at; and how strongly."""

    left: AbstractSet[int]
    others: AbstractSet[int]
    strength: Strength


def text_hash(text: str) -> bytes:
    """Return the hash that a content is known by within its view."""
    return sha256(text.encode()).digest()


async def get_or_make(
    tx: Tx, collection: int, fresh: Iterable[PreparedContent], seal: Seal | None, locks: ContentLocks
) -> StoredContents:
    """Make the contents that are not there, and lock those that are.

    Raises:
        Contended: one that was there went meanwhile with its last record.
    """
    asked = {one.key: one for one in fresh}
    # In the order of their keys, so that two writers of the same texts wait for each other in one direction only.
    keys = sorted(asked)
    wanted = [asked[key] for key in keys]
    texts = [one.text for one in wanted]
    sealed = [seal(one.text_hash, one.text) if seal and one.waits and one.text is not None else None for one in wanted]
    columns = [
        BigintArray.of(one.view for one in wanted),
        bytea_array([one.text_hash for one in wanted]),
        text_array([None] * len(texts) if seal else texts),
        bytea_array(sealed),
        BigintArray.of(len(text or "") for text in texts),
    ]
    rows = await tx.rows(ADD, [tx.tenant, collection, *columns]) if keys else []
    added = {(int(view), bytes(key)): int(pk) for pk, view, key in rows}
    there = [key for key in keys if key not in added]
    found = {
        int(pk): ((int(view), bytes(key)), failed)
        for pk, view, key, failed in await _lock(tx, collection, there, locks)
    }
    by_key = {**{key: pk for pk, (key, _) in found.items()}, **added}
    if any(key not in by_key for key in keys):
        # One that was there when we inserted is gone now: its last record left.
        raise Contended("40001", "contents")
    failed = {pk: asked[key] for pk, (key, failed) in found.items() if failed and key in asked}
    return StoredContents(asked, by_key, added, [by_key[key] for key in there], failed)


async def _lock(tx: Tx, collection: int, there: Sequence[ContentKey], locks: ContentLocks) -> list[Row]:
    """Lock contents; return id, view, hash and whether it has failed of each that is still there."""
    if not there and not locks.others:
        return []
    views, hashes = sorted({view for view, _ in there}), sorted({key for _, key in there})
    if not locks.others and locks.strength == "KEY SHARE":
        return await tx.rows(KEEP, [collection, views, hashes])
    wanted = {
        "collection": collection,
        "views": views,
        "hashes": hashes,
        "contents": sorted(locks.others),
        "left": sorted(locks.left),
        "strength": locks.strength,
    }
    return await tx.rows(LOCK, wanted)


async def wait_longer(tx: Tx, generations: Mapping[int, Sequence[int]], contents: Sequence[int]) -> None:
    """Have texts that wait sealed wait for as long as if they had just come; their locks are held."""
    await tx.execute(WAIT_LONGER, [contents, [one for ids in generations.values() for one in ids]])


async def revive(
    tx: Tx,
    generations: Mapping[int, Sequence[int]],
    failed: Mapping[int, PreparedContent],
    lane: int,
    seal: Seal | None,
) -> list[int]:
    """Have failed contents tried again; return those that have not been revived by another meanwhile."""
    if not failed:
        return []
    pks = sorted(failed)
    sealed = [seal(one.text_hash, one.text or "") if seal else None for one in (failed[pk] for pk in pks)]
    revived = await tx.column(REVIVE, [pks, pks, sealed])
    for view, ids in generations.items():
        again = [pk for pk in revived if failed[pk].view == view]
        for generation in ids if again else ():
            statement = WAIT_AGAIN.format(vectors=table("vec", generation))
            await tx.execute(statement, [generation, lane, again, [failed[pk].request_id for pk in again]])
    return revived


def entries(
    tx: Tx, generations: Mapping[int, Sequence[int]], stored: StoredContents, lane: int
) -> list[tuple[Statement, Parameters]]:
    """Return the statements that have contents which were made wait for their vectors."""
    statements: list[tuple[Statement, Parameters]] = []
    for view, ids in generations.items():
        made = ((pk, stored.asked[key]) for key, pk in stored.added.items() if key[0] == view)
        waiting = {pk: one for pk, one in made if one.waits}
        if waiting:
            columns = [
                BigintArray.of(waiting),
                BigintArray.of(one.tokens for one in waiting.values()),
                text_array([one.request_id for one in waiting.values()]),
            ]
            statements.append((ADD_WAITING, [tx.tenant, lane, *columns, list(ids)]))
    return statements


async def beside(tx: Tx, records: Iterable[int]) -> dict[tuple[int, int], int]:
    """Return what records, by their keys, have in the views beside the first."""
    return {(int(pk), int(view)): int(content) for pk, view, content in await tx.rows(FIND_BESIDE, [list(records)])}


async def point_beside(tx: Tx, collection: int, changed: Sequence[int], was: Pointers, wanted: Pointers) -> None:
    """Point records at their contents, whose locks are held.

    Args:
        changed: records that were there before, which are locked.
        was: what these were seen to have.
        wanted: what all are to have from now on.

    Raises:
        Contended: another writer gave one of them another content meanwhile; try the whole transaction again.
    """
    if changed and await beside(tx, changed) != was:
        raise Contended("40001", "record_contents")
    over = [key for key in was if key not in wanted]
    fresh = [(*key, content) for key, content in wanted.items() if was.get(key) != content]
    if over:
        await tx.execute(DROP_BESIDE, [list(column) for column in zip(*over, strict=True)])
    if fresh:
        await tx.execute(POINT_BESIDE, [tx.tenant, collection, *(list(column) for column in zip(*fresh, strict=True))])
