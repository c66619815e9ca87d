"""Records and the contents they point at, as they are written; `deletions` has how they go.

Locks are taken in one order everywhere: the collection's advisory lock, contents, new records, changed records; rows of
a batch by their keys. What hangs on a content (waiting, vec_, terms_) is written by who holds its lock, or skipped
where it is locked. Whoever writes a record holds its content: FOR UPDATE if the record leaves it, so that it may go
with its last, else no more than FOR KEY SHARE, which keeps it there and nobody waiting: a few hundred texts have tens
of thousands of spans.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

import orjson
from psycopg.sql import SQL

from likewise.db import collections, contents, deletions, fields, jobs
from likewise.db.arrays import BigintArray, bytea_array, text_array
from likewise.db.collections import ViewRow
from likewise.db.contents import ContentKey, ContentLocks, PreparedContent, Seal, StoredContents, Strength
from likewise.db.deletions import GoneContent
from likewise.db.failures import CollectionGone, Contended
from likewise.db.transaction import Parameters, Row, Statement, Tx
from likewise.kind import Payload

RecordState = Literal["created", "changed", "unchanged"]
INTERACTIVE = 0
BULK = 1
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


@dataclass(frozen=True)
class PreparedRecord:
    """A record ready for its row: text cleaned and hashed, payload as JSON; and the request that it came with.

    `beside` are its contents in the views beside the first.
    """

    id: str
    text: str
    text_hash: bytes
    payload: Payload
    payload_json: str
    parent: str | None
    status: str | None
    occurred_at: datetime | None
    request_id: str | None = None
    beside: tuple[PreparedContent, ...] = ()

    @property
    def content(self) -> PreparedContent:
        """The content in the first view, made anew at each look."""
        return PreparedContent(0, self.text_hash, self.text, self.request_id)


@dataclass(frozen=True)
class BatchDiff:
    """A batch beside what is stored, under the collection's lock.

    `generations` are those of each view that texts wait for. `old` has (record, content) of records that are there and
    not the same, and `beside` what these have in other views; `unchanged` the content of those that are the same.
    `left` are contents that one of the former leaves for another, `failed` contents of the latter that are to be tried
    again.
    """

    generations: Mapping[int, Sequence[int]]
    fresh: Sequence[PreparedRecord]
    old: Mapping[str, tuple[int, int]]
    unchanged: Mapping[str, int]
    left: AbstractSet[int]
    failed: Mapping[int, PreparedContent]
    beside: Mapping[str, Mapping[int, int]] = field(default_factory=dict)

    @cached_property
    def contents(self) -> Sequence[PreparedContent]:
        """The contents of fresh records, in all views."""
        return [one for record in self.fresh for one in (record.content, *record.beside)]


@dataclass(frozen=True)
class WriteOutcome:
    """The outcome of a batch: what became of each record and its content in the first view now, by its id.

    `new_contents` are those that were made, in any view, and `gone` those that went with their last record; `waiting`
    says whether vectors are to be embedded.
    """

    outcome_of: Mapping[str, RecordState]
    content_of: Mapping[str, int]
    new_contents: Mapping[ContentKey, int] = field(default_factory=dict)
    gone: Sequence[GoneContent] = ()
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
        """Return the outcome of these records among others."""
        kept = list(ids)
        return WriteOutcome({one: self.outcome_of[one] for one in kept}, {one: self.content_of[one] for one in kept})

    def _count(self, outcome: RecordState) -> int:
        return sum(one == outcome for one in self.outcome_of.values())


async def compare(
    tx: Tx, collection: int, records: Sequence[PreparedRecord], *, several: bool = False, alone: bool = False
) -> BatchDiff:
    """Take the collection's lock and see what of a batch is there already. Nothing is written.

    Args:
        records: with distinct ids, sorted by id.
        several: whether the collection has views beside the first.
        alone: whether other writers wait meanwhile.

    Raises:
        CollectionGone: the collection was dropped.
    """
    places, ids = BigintArray.of(range(len(records))), text_array([record.id for record in records])
    columns = [
        places,
        ids,
        bytea_array([record.text_hash for record in records]),
        text_array([record.payload_json for record in records]),
        text_array([record.parent for record in records]),
        text_array([record.status for record in records]),
        [record.occurred_at for record in records],
    ]
    _, live, found, *beside = await tx.together(
        (collections.LOCK if alone else collections.SHARE, [collection]),
        (collections.LIVE_GENERATIONS, [collection]),
        (COMPARE, [*columns, collection]),
        *([(contents.COMPARE_BESIDE, [places, ids, collection])] if several else ()),
    )
    if not live:
        raise CollectionGone
    diff = BatchDiff(
        generations=_waited_for(live),
        fresh=[],
        old={records[place].id: (int(pk), int(content)) for place, pk, content, *_, same in found if not same},
        unchanged={records[place].id: int(content) for place, _, content, *_, same in found if same},
        left={int(content) for _, _, content, _, same_text, _ in found if not same_text},
        failed={
            int(content): records[place].content for place, _, content, failed, _, same in found if failed and same
        },
    )
    if several:
        pks = {records[place].id: int(pk) for place, pk, *_ in found}
        diff = _compared_beside(diff, records, pks, [(records[place].id, *row) for place, *row in beside[0]])
    return replace(diff, fresh=[record for record in records if record.id not in diff.unchanged])


def _waited_for(live: Sequence[Row]) -> dict[int, list[int]]:
    """Group the generations that texts wait for by their views; vectors that are made of records wait for nothing."""
    generations: dict[int, list[int]] = {}
    for number, view, model in live:
        if model:
            generations.setdefault(int(view), []).append(int(number))
    return generations


def _compared_beside(
    diff: BatchDiff, records: Sequence[PreparedRecord], pks: Mapping[str, int], rows: Sequence[Row]
) -> BatchDiff:
    """Return the difference with the views beside the first, given as (id, view, content, hash, failed)."""
    stored: dict[str, dict[int, tuple[int, bytes, bool]]] = {id_: {} for id_ in pks}
    for id_, view, content, key, failed in rows:
        stored[id_][int(view)] = int(content), bytes(key), failed
    old, unchanged, left, failing = dict(diff.old), dict(diff.unchanged), set(diff.left), dict(diff.failed)
    for record in records:
        if record.id not in stored:
            continue
        now, wanted = stored[record.id], {one.view: one for one in record.beside}
        left |= {pk for view, (pk, key, _) in now.items() if view not in wanted or wanted[view].text_hash != key}
        if {view: key for view, (_, key, _) in now.items()} == {view: one.text_hash for view, one in wanted.items()}:
            if record.id in unchanged:
                failing.update({pk: wanted[view] for view, (pk, _, failed) in now.items() if failed})
        elif record.id in unchanged:
            content = unchanged.pop(record.id)
            old[record.id] = pks[record.id], content
            failing.pop(content, None)
    beside = {id_: {view: pk for view, (pk, _, _) in stored[id_].items()} for id_ in old}
    return replace(diff, old=old, unchanged=unchanged, left=left, failed=failing, beside=beside)


@dataclass(frozen=True)
class StoragePolicy:
    """The way in which a collection keeps what is written.

    `views` are all that the collection has. `indexed` are the payload fields that an index knows of each record,
    `facts` those that the first view's text itself determines, which one knows of each content. `seal` encrypts a text
    for the time that it waits, where texts are not kept.
    """

    views: Sequence[ViewRow]
    indexed: Sequence[str] = ()
    facts: Sequence[str] = ()
    seal: Seal | None = None

    @property
    def several(self) -> bool:
        """True if there are views beside the first."""
        return len(self.views) > 1


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
    beside = await contents.beside(tx, [pk for pk, _ in leaving]) if leaving and keeping.several else {}
    left = compared.left | {content for _, content in leaving} | set(beside.values())
    others = left | compared.failed.keys() | (set(compared.unchanged.values()) if for_job else set())
    # How long a text waits sealed may be changed, which no worker and no other sender may do meanwhile.
    strength: Strength = "NO KEY UPDATE" if seal else "SHARE" if for_job else "KEY SHARE"
    stored = await contents.get_or_make(tx, collection, compared.contents, seal, ContentLocks(left, others, strength))
    if seal is not None and stored.there:
        await contents.wait_longer(tx, compared.generations, stored.there)
    revived = await contents.revive(tx, compared.generations, {**stored.failed, **compared.failed}, lane, seal)
    # New ones first: an insert waits for whoever changes a row of its id, and must keep nobody waiting meanwhile.
    entering = contents.entries(tx, compared.generations, stored, lane)
    made = await _add(tx, collection, [record for record in fresh if record.id not in old], stored, entering)
    await _change(tx, [record for record in fresh if record.id in old], compared, stored)
    pks = {**{id_: pk for id_, (pk, _) in old.items()}, **made}
    if keeping.several:
        await _point_beside(tx, collection, compared, stored, pks)
    await deletions.leave(tx, leaving, beside)
    await _index(tx, collection, compared, stored, pks, keeping)
    return WriteOutcome(
        outcome_of={**outcome_of, **dict.fromkeys(old, "changed"), **dict.fromkeys(made, "created")},
        content_of={**compared.unchanged, **{record.id: stored.by_key[0, record.text_hash] for record in fresh}},
        new_contents=stored.added,
        gone=await deletions.drop_empty(tx, collection, sorted(left), jobs.REPLACED, views=keeping.views),
        waiting=bool(entering or revived),
    )


async def _change(tx: Tx, changed: Sequence[PreparedRecord], compared: BatchDiff, stored: StoredContents) -> None:
    """Change records; the contents that they leave are locked."""
    if not changed:
        return
    old = compared.old
    pks = BigintArray.of(old[record.id][0] for record in changed)
    rows = await tx.rows(LOCK_RECORDS, [pks])
    locked = {int(pk): int(content) for pk, content in rows}
    if any(locked.get(old[record.id][0]) != old[record.id][1] for record in changed):
        raise Contended("40001", "records")
    await tx.execute(CHANGE_RECORDS, [pks, *_columns(changed, stored.by_key)])


async def _add(
    tx: Tx,
    collection: int,
    new: Sequence[PreparedRecord],
    stored: StoredContents,
    entering: Sequence[tuple[Statement, Parameters]],
) -> dict[str, int]:
    """Add records, and the queue's entries of all contents that were made."""
    statements = list(entering)
    if new:
        columns = [text_array([record.id for record in new]), *_columns(new, stored.by_key)]
        statements.insert(0, (ADD_RECORDS, [tx.tenant, collection, *columns]))
    rows = await tx.together(*statements) if statements else []
    made = {str(id_): int(pk) for pk, id_ in rows[0]} if new else {}
    if len(made) != len(new):
        raise Contended("40001", "records")
    return made


async def _point_beside(
    tx: Tx, collection: int, compared: BatchDiff, stored: StoredContents, pks: Mapping[str, int]
) -> None:
    """Point fresh records at their contents beside the first view."""
    was = {(pks[id_], view): content for id_, now in compared.beside.items() for view, content in now.items()}
    wanted = {(pks[record.id], one.view): stored.by_key[one.key] for record in compared.fresh for one in record.beside}
    await contents.point_beside(tx, collection, [pk for pk, _ in compared.old.values()], was, wanted)


async def _index(
    tx: Tx, collection: int, compared: BatchDiff, stored: StoredContents, pks: Mapping[str, int], keeping: StoragePolicy
) -> None:
    """Keep the fields by which records, and contents that were made, are found."""
    fresh, old, added = compared.fresh, compared.old, stored.added
    if keeping.indexed:
        rows = [(record.payload, stored.by_key[0, record.text_hash], pks[record.id]) for record in fresh]
        await fields.write(tx, collection, keeping.indexed, rows, changed=[pk for pk, _ in old.values()])
    if keeping.facts and added:
        one_of_each = {record.text_hash: record.payload for record in fresh if (0, record.text_hash) in added}
        facts = [(one, added[0, key]) for key, one in one_of_each.items()]
        await fields.write_facts(tx, collection, keeping.facts, facts)


def _columns(records: Sequence[PreparedRecord], by_key: Mapping[ContentKey, int]) -> list[Any]:
    return [
        BigintArray.of(by_key[0, record.text_hash] for record in records),
        text_array([record.parent for record in records]),
        text_array([record.status for record in records]),
        [record.occurred_at for record in records],
        text_array([record.payload_json for record in records]),
    ]


def payload_json(payload: Payload) -> str:
    """Write a payload as JSON text."""
    return orjson.dumps(payload).decode()
