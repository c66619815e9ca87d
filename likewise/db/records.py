"""Records and the contents they point at, as they are written; `deletions` has how they go.

Locks are taken in one order everywhere: the collection's advisory lock, contents, new records, changed records; rows of
a batch by their keys. What hangs on a content (waiting, vec_, terms_) is written by who holds its lock, or skipped
where it is locked. Whoever writes a record holds its content: FOR UPDATE if the record leaves it, so that it may go
with its last, else no more than FOR KEY SHARE, which keeps it there and nobody waiting: a few hundred texts have tens
of thousands of spans.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any, Literal, get_args

import orjson
from psycopg import sql
from psycopg.sql import SQL

from likewise.db import collections, deletions, fields, jobs
from likewise.db.failures import CollectionGone, Contended
from likewise.db.transaction import Parameters, Row, Statement, Tx, table
from likewise.kind import Payload

RecordState = Literal["created", "changed", "unchanged"]
# From a text and its hash, what is stored of it while it waits.
Seal = Callable[[bytes, str], bytes]
# How a content is locked, the strongest first.
Strength = Literal["UPDATE", "NO KEY UPDATE", "SHARE", "KEY SHARE"]
INTERACTIVE = 0
BULK = 1
# An estimate, for bounds and for turns: the model's own tokenizer counts when it reads.
CHARS_A_TOKEN = 4

# The records as they stand, beside those that come: what is there, whether its text has failed, whether it is the same
# text, and the same in everything. OFFSET 0 has each looked up by the index, whatever the planner thinks of the
# table's size.
COMPARE = SQL("""
    SELECT i.place, r.pk, r.content, c.state = 'failed', c.text_hash = i.text_hash,
           c.text_hash = i.text_hash AND r.payload = i.payload::jsonb AND r.parent IS NOT DISTINCT FROM i.parent
           AND r.status IS NOT DISTINCT FROM i.status AND r.occurred_at IS NOT DISTINCT FROM i.occurred_at
    FROM unnest(%b::int[], %b::text[], %b::bytea[], %b::text[], %b::text[], %b::text[], %b::timestamptz[])
         AS i (place, id, text_hash, payload, parent, status, occurred_at)
    CROSS JOIN LATERAL (SELECT * FROM records r WHERE r.collection = %b AND r.id = i.id OFFSET 0) r
    CROSS JOIN LATERAL (SELECT * FROM contents c WHERE c.pk = r.content OFFSET 0) c
""")
ADD_CONTENTS = SQL("""
    INSERT INTO contents (tenant, collection, text_hash, text, sealed, chars)
    SELECT %b, %b, i.text_hash, i.text, i.sealed, i.chars
    FROM unnest(%b::bytea[], %b::text[], %b::bytea[], %b::int[]) WITH ORDINALITY
         AS i (text_hash, text, sealed, chars, place)
    ORDER BY i.place
    ON CONFLICT (collection, text_hash) DO NOTHING RETURNING pk, text_hash
""")
# Contents that a batch refers to, and no more.
KEEP_CONTENTS = SQL("""
    SELECT pk, text_hash, state = 'failed' FROM contents WHERE collection = %s AND text_hash = ANY (%s::bytea[])
    ORDER BY pk FOR KEY SHARE
""")
# Each as strongly as it must be, and all in one order, which two statements would not keep: those that a record leaves
# against everybody, those that are tried again against workers and other senders, the others as the caller says.
LOCK_CONTENTS = SQL("""
    SELECT locked.pk, locked.text_hash, locked.failed FROM (
        SELECT pk, CASE WHEN pk = ANY (%(left)s::bigint[]) THEN 'UPDATE' WHEN state = 'failed' THEN 'NO KEY UPDATE'
                        ELSE %(strength)s END AS strength
        FROM contents WHERE pk IN (
            SELECT pk FROM contents WHERE collection = %(collection)s AND text_hash = ANY (%(hashes)s::bytea[])
            UNION SELECT unnest(%(contents)s::bigint[]))
        ORDER BY pk OFFSET 0
    ) wanted CROSS JOIN LATERAL ({each}) AS locked (pk, text_hash, failed)
""").format(
    each=SQL(" UNION ALL ").join(
        SQL("""
            SELECT * FROM (SELECT c.pk, c.text_hash, c.state = 'failed' FROM contents c
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
ADD_RECORDS = SQL("""
    INSERT INTO records (tenant, collection, id, content, parent, status, occurred_at, payload)
    SELECT %b, %b, i.id, i.content, i.parent, i.status, i.occurred_at, i.payload::jsonb
    FROM unnest(%b::text[], %b::bigint[], %b::text[], %b::text[], %b::timestamptz[], %b::text[]) WITH ORDINALITY
         AS i (id, content, parent, status, occurred_at, payload, place) ORDER BY i.place
    ON CONFLICT (collection, id) DO NOTHING RETURNING pk, id
""")
LOCK_RECORDS = SQL("SELECT pk, content FROM records WHERE pk = ANY (%s::bigint[]) ORDER BY id FOR UPDATE")
CHANGE_RECORDS = SQL("""
    UPDATE records r SET content = i.content, parent = i.parent, status = i.status, occurred_at = i.occurred_at,
           payload = i.payload::jsonb, updated_at = now()
    FROM unnest(%b::bigint[], %b::bigint[], %b::text[], %b::text[], %b::timestamptz[], %b::text[])
         AS i (pk, content, parent, status, occurred_at, payload)
    WHERE r.pk = i.pk
""")
ADD_WAITING = SQL("""
    INSERT INTO waiting (tenant, generation, content, lane, tokens, request_id)
    SELECT %b, g, c.pk, %b, c.tokens, c.request_id
    FROM unnest(%b::bigint[], %b::int[], %b::text[]) AS c (pk, tokens, request_id) CROSS JOIN unnest(%b::int[]) AS g
    ORDER BY g, c.pk
    ON CONFLICT (generation, content) DO NOTHING
""")


@dataclass(frozen=True)
class PreparedRecord:
    """A record ready for its row: text cleaned and hashed, payload as JSON; and the request that it came with."""

    id: str
    text: str
    text_hash: bytes
    payload: Payload
    payload_json: str
    parent: str | None
    status: str | None
    occurred_at: datetime | None
    request_id: str | None = None

    @property
    def tokens(self) -> int:
        """An estimate of what the model will read: 4 characters a token."""
        return len(self.text) // CHARS_A_TOKEN + 1


@dataclass(frozen=True)
class BatchDiff:
    """A batch beside what is stored, under the collection's lock.

    `old` has (record, content) of those that are there and not the same, `unchanged` the content of those that are;
    `left` are contents that one of the former leaves for another text, `failed` contents of the latter that are to be
    tried again, with the record that asks for it.
    """

    generations: Sequence[int]
    fresh: Sequence[PreparedRecord]
    old: Mapping[str, tuple[int, int]]
    unchanged: Mapping[str, int]
    left: AbstractSet[int]
    failed: Mapping[int, PreparedRecord]


@dataclass(frozen=True)
class WriteOutcome:
    """The outcome of a batch: the state of each record and the content that it points at now, by its id.

    `gone` has the hashes of texts that went with their last record; `waiting` says whether vectors are to be made.
    """

    outcome_of: Mapping[str, RecordState]
    content_of: Mapping[str, int]
    new_contents: Mapping[bytes, int] = field(default_factory=dict)
    gone: Sequence[bytes] = ()
    waiting: bool = False

    @property
    def created(self) -> int:
        """The number of records that were not there before."""
        return self._count("created")

    @property
    def changed(self) -> int:
        """The number of records that were there and different."""
        return self._count("changed")

    @property
    def unchanged(self) -> int:
        """The number of records that were there just so."""
        return self._count("unchanged")

    @property
    def contents(self) -> tuple[int, ...]:
        """The contents that the records point at."""
        return tuple(sorted(set(self.content_of.values())))

    def part(self, ids: Iterable[str]) -> "WriteOutcome":
        """Return the part of the outcome that is about these records."""
        kept = list(ids)
        return WriteOutcome({one: self.outcome_of[one] for one in kept}, {one: self.content_of[one] for one in kept})

    def _count(self, outcome: RecordState) -> int:
        return sum(one == outcome for one in self.outcome_of.values())


def text_hash(text: str) -> bytes:
    """The key of a content within its collection."""
    return sha256(text.encode()).digest()


async def compare(tx: Tx, collection: int, records: Sequence[PreparedRecord], *, alone: bool = False) -> BatchDiff:
    """Take the collection's lock and see what of a batch is there already. Nothing is written.

    Args:
        records: with distinct ids, sorted by id.
        alone: whether other writers wait meanwhile.

    Raises:
        CollectionGone: the collection was dropped.
    """
    columns = [
        list(range(len(records))),
        [record.id for record in records],
        [record.text_hash for record in records],
        [record.payload_json for record in records],
        [record.parent for record in records],
        [record.status for record in records],
        [record.occurred_at for record in records],
    ]
    _, live, found = await tx.together(
        (collections.LOCK if alone else collections.SHARE, [collection]),
        (collections.LIVE_GENERATIONS, [collection]),
        (COMPARE, [*columns, collection]),
    )
    generations = [int(row[0]) for row in live]
    if not generations:
        raise CollectionGone
    unchanged = {records[place].id: int(content) for place, _, content, *_, same in found if same}
    failed = {int(content): records[place] for place, _, content, failed, _, same in found if failed and same}
    return BatchDiff(
        generations=generations,
        fresh=[record for record in records if record.id not in unchanged],
        old={records[place].id: (int(pk), int(content)) for place, pk, content, *_, same in found if not same},
        unchanged=unchanged,
        left={int(content) for _, _, content, _, same_text, _ in found if not same_text},
        failed=failed,
    )


@dataclass(frozen=True)
class StoragePolicy:
    """The rules by which a collection keeps what is written.

    `indexed` are the payload fields that an index knows of each record, `facts` those that the text itself determines,
    which one knows of each content. `seal` encrypts a text for the time that it waits, where texts are not kept;
    `terms` says whether the collection has a table of words.
    """

    indexed: Sequence[str] = ()
    facts: Sequence[str] = ()
    seal: Seal | None = None
    terms: bool = True


async def write(
    tx: Tx,
    collection: int,
    compared: BatchDiff,
    keeping: StoragePolicy,
    *,
    lane: int,
    for_job: bool = False,
    leaving: Sequence[tuple[int, int]] = (),
) -> WriteOutcome:
    """Store what `compare` found to be new or different, in the order of the locks.

    Args:
        for_job: whether a job is started on contents of this batch after it, so that they are locked against workers.
        leaving: (record, content) of records that are deleted beside it.

    Raises:
        Contended: another writer stored, or deleted, one of these ids meanwhile; try the whole transaction again.
    """
    fresh, old, seal = compared.fresh, compared.old, keeping.seal
    outcome_of: dict[str, RecordState] = dict.fromkeys(compared.unchanged, "unchanged")
    if not fresh and not compared.failed and not leaving:
        return WriteOutcome(outcome_of, compared.unchanged)
    left = compared.left | {content for _, content in leaving}
    others = left | compared.failed.keys() | (set(compared.unchanged.values()) if for_job else set())
    # How long a text waits sealed may be changed, which no worker and no other sender may do meanwhile.
    strength: Strength = "NO KEY UPDATE" if seal else "SHARE" if for_job else "KEY SHARE"
    contents = await _get_or_make_contents(tx, collection, fresh, seal, _Locks(left, others, strength))
    if seal is not None and contents.there:
        await tx.execute(WAIT_LONGER, [contents.there, list(compared.generations)])
    revived = await _revive(tx, compared.generations, {**contents.failed, **compared.failed}, lane, seal)
    # New ones first: an insert waits for whoever changes a row of its id, and must keep nobody waiting meanwhile.
    made = await _add(tx, collection, [record for record in fresh if record.id not in old], contents, compared, lane)
    await _change(tx, [record for record in fresh if record.id in old], old, contents.by_hash)
    await deletions.leave(tx, leaving)
    await _index(tx, collection, compared, contents, made, keeping)
    return WriteOutcome(
        outcome_of={**outcome_of, **dict.fromkeys(old, "changed"), **dict.fromkeys(made, "created")},
        content_of={**compared.unchanged, **{record.id: contents.by_hash[record.text_hash] for record in fresh}},
        new_contents=contents.added,
        gone=await deletions.drop_empty(tx, collection, sorted(left), jobs.REPLACED, keep_terms=keeping.terms),
        waiting=bool(contents.added or revived),
    )


@dataclass(frozen=True)
class _Contents:
    """The contents of fresh records by hash; those made, those there, those that failed, and the request's id."""

    by_hash: Mapping[bytes, int]
    added: Mapping[bytes, int]
    there: Sequence[int]
    failed: Mapping[int, PreparedRecord]


@dataclass(frozen=True)
class _Locks:
    """Contents that a record leaves; all to be locked beside those that fresh records point at; and how strongly."""

    left: AbstractSet[int]
    others: AbstractSet[int]
    strength: Strength


async def _get_or_make_contents(
    tx: Tx, collection: int, fresh: Sequence[PreparedRecord], seal: Seal | None, locks: _Locks
) -> _Contents:
    """Make the contents of fresh records that are not there, and lock those that are."""
    texts = {record.text_hash: record.text for record in fresh}
    # In the order of their hashes, so that two writers of the same texts wait for each other in one direction only.
    hashes = sorted(texts)
    kept = [None if seal else texts[one] for one in hashes]
    sealed = [seal(one, texts[one]) if seal else None for one in hashes]
    columns = [hashes, kept, sealed, [len(texts[one]) for one in hashes]]
    rows = await tx.rows(ADD_CONTENTS, [tx.tenant, collection, *columns]) if hashes else []
    added = {bytes(key): int(pk) for pk, key in rows}
    there = [one for one in hashes if one not in added]
    found = await _lock(tx, collection, there, locks)
    by_hash = {**{bytes(key): int(pk) for pk, key, _ in found}, **added}
    if any(one not in by_hash for one in hashes):
        # One that was there when we inserted is gone now: its last record left.
        raise Contended("40001", "contents")
    asking = {record.text_hash: record for record in fresh}
    failed = {int(pk): asking[bytes(key)] for pk, key, failed in found if failed and bytes(key) in asking}
    return _Contents(by_hash, added, [by_hash[one] for one in there], failed)


async def _lock(tx: Tx, collection: int, there: Sequence[bytes], locks: _Locks) -> list[Row]:
    """Lock contents; pk, hash of the text and whether it has failed of each that is still there."""
    if not there and not locks.others:
        return []
    if not locks.others and locks.strength == "KEY SHARE":
        return await tx.rows(KEEP_CONTENTS, [collection, there])
    wanted = {
        "collection": collection,
        "hashes": there,
        "contents": sorted(locks.others),
        "left": sorted(locks.left),
        "strength": locks.strength,
    }
    return await tx.rows(LOCK_CONTENTS, wanted)


async def _revive(
    tx: Tx, generations: Sequence[int], failed: Mapping[int, PreparedRecord], lane: int, seal: Seal | None
) -> list[int]:
    """Have failed contents tried again; returns those that have not been revived by another meanwhile."""
    if not failed:
        return []
    pks = sorted(failed)
    sealed = [seal(failed[one].text_hash, failed[one].text) if seal else None for one in pks]
    revived = [int(row[0]) for row in await tx.rows(REVIVE, [pks, pks, sealed])]
    for generation in generations if revived else ():
        statement = WAIT_AGAIN.format(vectors=table("vec", generation))
        await tx.execute(statement, [generation, lane, revived, [failed[one].request_id for one in revived]])
    return revived


async def _change(
    tx: Tx, changed: Sequence[PreparedRecord], old: Mapping[str, tuple[int, int]], by_hash: Mapping[bytes, int]
) -> None:
    """Change records; the contents that they leave are locked."""
    if not changed:
        return
    rows = await tx.rows(LOCK_RECORDS, [[old[record.id][0] for record in changed]])
    locked = {int(pk): int(content) for pk, content in rows}
    if any(locked.get(old[record.id][0]) != old[record.id][1] for record in changed):
        raise Contended("40001", "records")
    columns = [[old[record.id][0] for record in changed], *_columns(changed, by_hash)]
    await tx.execute(CHANGE_RECORDS, columns)


async def _add(
    tx: Tx,
    collection: int,
    new: Sequence[PreparedRecord],
    contents: _Contents,
    compared: BatchDiff,
    lane: int,
) -> dict[str, int]:
    """Add records, and the queue's entries of all contents that were made."""
    statements: list[tuple[Statement, Parameters]] = []
    if new:
        columns = [[record.id for record in new], *_columns(new, contents.by_hash)]
        statements.append((ADD_RECORDS, [tx.tenant, collection, *columns]))
    if contents.added:
        first = {record.text_hash: record for record in reversed(compared.fresh)}
        entries = sorted((pk, first[key].tokens, first[key].request_id) for key, pk in contents.added.items())
        columns = [list(column) for column in zip(*entries, strict=True)]
        statements.append((ADD_WAITING, [tx.tenant, lane, *columns, list(compared.generations)]))
    rows = await tx.together(*statements) if statements else []
    made = {str(id_): int(pk) for pk, id_ in rows[0]} if new else {}
    if len(made) != len(new):
        raise Contended("40001", "records")
    return made


async def _index(
    tx: Tx, collection: int, compared: BatchDiff, contents: _Contents, made: Mapping[str, int], keeping: StoragePolicy
) -> None:
    """Keep the fields by which records, and contents that were made, are found."""
    fresh, old, added = compared.fresh, compared.old, contents.added
    if keeping.indexed:
        pks = {**{id_: pk for id_, (pk, _) in old.items()}, **made}
        rows = [(pks[record.id], contents.by_hash[record.text_hash], record.payload) for record in fresh]
        await fields.write(tx, collection, keeping.indexed, rows, changed=[pk for pk, _ in old.values()])
    if keeping.facts and added:
        one_of_each = {record.text_hash: record.payload for record in fresh if record.text_hash in added}
        facts = [(added[key], one) for key, one in one_of_each.items()]
        await fields.write_facts(tx, collection, keeping.facts, facts)


def _columns(records: Sequence[PreparedRecord], by_hash: Mapping[bytes, int]) -> list[list[Any]]:
    return [
        [by_hash[record.text_hash] for record in records],
        [record.parent for record in records],
        [record.status for record in records],
        [record.occurred_at for record in records],
        [record.payload_json for record in records],
    ]


def payload_json(payload: Payload) -> str:
    """A payload as JSON text."""
    return orjson.dumps(payload).decode()
