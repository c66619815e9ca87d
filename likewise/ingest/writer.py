"""Writer: the one way in. Records, contents, terms and the queue's entries, in one transaction."""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

from likewise.cleaning import cleaned, cleaned_json
from likewise.db import collections, records, terms
from likewise.db.collections import Collection
from likewise.db.pool import Pool, Tx, retried
from likewise.db.records import PreparedRecord, Written
from likewise.db.terms import ContentTerms
from likewise.ingest.wakeups import Wakeups
from likewise.kind import Kind, NewRecord
from likewise.search.analyzer import analyze

T = TypeVar("T")

# Tries of a write beside others; after that it has the collection to itself for a moment.
TRIES_BESIDE_OTHERS = 3


@dataclass
class _Lengths:
    """Terms and contents that this process wrote and has not yet added to the collection's row."""

    terms: int = 0
    contents: int = 0


class TermAverages:
    """The running average of a collection's text length in terms.

    It is added to the collection's row every few seconds and not in each transaction, where that one row would make
    all writers wait for each other. A crash loses some seconds of it, which moves a weight by next to nothing.
    """

    def __init__(self) -> None:
        self._added: dict[tuple[int, int], _Lengths] = {}

    def average(self, collection: Collection, batch: Sequence[Counter[int]]) -> float:
        """Terms a text, over what is stored and this batch."""
        ours = self._added.get((collection.tenant, collection.id), _Lengths())
        total = collection.terms_total + ours.terms + sum(counts.total() for counts in batch)
        return total / max(1, collection.contents_total + ours.contents + len(batch))

    def add(self, collection: Collection, batch: Sequence[Counter[int]]) -> None:
        """Count a batch that has been committed."""
        ours = self._added.setdefault((collection.tenant, collection.id), _Lengths())
        ours.terms += sum(counts.total() for counts in batch)
        ours.contents += len(batch)

    async def flush(self, pool: Pool) -> None:
        """Add what has come to the collections' rows."""
        pending, self._added = self._added, {}
        for (tenant, collection), lengths in pending.items():
            async with pool.tenant(tenant) as tx:
                await collections.add_terms(tx, collection, terms=lengths.terms, contents=lengths.contents)


class Writer:
    """Stores batches of records; a worker adds their vectors later."""

    def __init__(self, pool: Pool, wakeups: Wakeups) -> None:
        self._pool = pool
        self._wakeups = wakeups
        self.averages = TermAverages()

    async def write(
        self, tenant: int, collection: Collection, kind: Kind, batch: Sequence[NewRecord], *, lane: int = records.BULK
    ) -> Written:
        """Commit a batch of records with distinct ids; findable by their words from then on.

        Args:
            lane: which records' vectors come first, `records.INTERACTIVE` or `records.BULK`.
        """
        prepared = sorted((prepare(kind, record) for record in batch), key=lambda record: record.id)
        if not prepared:
            return Written(0, 0, 0, (), {})
        analyzed: dict[bytes, Counter[int]] = {}
        written = await _at_last_alone(
            lambda alone: self._write(tenant, collection, kind, prepared, analyzed, lane, alone=alone)
        )
        if written.new_contents:
            self.averages.add(collection, [analyzed[key] for key in written.new_contents if key in analyzed])
            self._wakeups.mark()
        return written

    async def delete(self, tenant: int, collection: Collection, record: str) -> bool:
        """Take a record away with everything that hangs on it alone; False if it was not there."""

        async def once(alone: bool) -> bool:
            async with self._pool.tenant(tenant) as tx:
                return await records.delete(tx, collection.id, record, alone=alone)

        return await _at_last_alone(once)

    async def _write(
        self,
        tenant: int,
        collection: Collection,
        kind: Kind,
        prepared: Sequence[PreparedRecord],
        analyzed: dict[bytes, Counter[int]],
        lane: int,
        *,
        alone: bool,
    ) -> Written:
        policy = collection.policy
        indexed = tuple(dict.fromkeys((*kind.indexed, *policy.indexed)))
        async with self._pool.tenant(tenant) as tx:
            written = await records.write(
                tx, collection.id, prepared, indexed=indexed, lane=lane, keep_text=policy.keep_text, alone=alone
            )
            if policy.keep_terms and written.new_contents:
                await self._write_terms(tx, collection, prepared, written.new_contents, analyzed)
        return written

    async def _write_terms(
        self,
        tx: Tx,
        collection: Collection,
        prepared: Sequence[PreparedRecord],
        new_contents: Mapping[bytes, int],
        analyzed: dict[bytes, Counter[int]],
    ) -> None:
        for record in prepared:
            if record.text_hash in new_contents and record.text_hash not in analyzed:
                analyzed[record.text_hash] = analyze(record.text)
        average = self.averages.average(collection, [analyzed[key] for key in new_contents])
        rows = [ContentTerms(content, analyzed[key]) for key, content in new_contents.items()]
        await terms.write(tx, collection.id, rows, average)


async def _at_last_alone(work: Callable[[bool], Awaitable[T]]) -> T:
    """Run a write again while others are in its way, and in the end without them."""
    tries = count()
    return await retried(lambda: work(next(tries) >= TRIES_BESIDE_OTHERS))


def prepare(kind: Kind, record: NewRecord) -> PreparedRecord:
    """A record with its text cleaned and hashed. The id keeps its form: one with NUL was refused at the door."""
    text = cleaned(kind.text(record))
    payload = cleaned_json(record.payload)
    return PreparedRecord(
        id=record.id,
        text=text,
        text_hash=records.text_hash(text),
        payload=payload,
        payload_json=records.payload_json(payload),
        parent=None if record.parent is None else cleaned(record.parent),
        status=None if record.status is None else cleaned(record.status),
        occurred_at=record.occurred_at,
    )
