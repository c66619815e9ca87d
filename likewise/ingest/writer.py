"""Writer: the one way in. Records, contents, terms and the queue's entries, in one transaction."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Any, TypeVar

from likewise.cleaning import cleaned, cleaned_json, fit_for_id, is_json
from likewise.db import records, terms
from likewise.db.collections import Collection
from likewise.db.pool import Pool, Tx, retried
from likewise.db.records import PreparedRecord, Written
from likewise.errors import Fault, Invalid
from likewise.ingest.batch_terms import BatchTerms, TermAverages
from likewise.ingest.wakeups import Wakeups
from likewise.kind import Kind, NewRecord

T = TypeVar("T")
BeforeCommit = Callable[[Tx, Written], Awaitable[None]]

NOT_JSON = "A payload is a JSON object; its numbers are finite, integers have 64 bits at most, and its keys are texts."
BAD_ID = "An id is a text without control characters and without U+FFFD, a character that was lost on the way."

# A batch of so many characters takes long enough to analyse (10 ms) that other requests should not wait for it.
LARGE_BATCH = 20_000
# Tries of a write beside others; after that it has the collection to itself for a moment.
TRIES_BESIDE_OTHERS = 3


class Writer:
    """Stores batches of records; a worker adds their vectors later."""

    def __init__(self, pool: Pool, wakeups: Wakeups) -> None:
        self._pool = pool
        self._wakeups = wakeups
        self.averages = TermAverages()

    async def write(
        self,
        tenant: int,
        collection: Collection,
        kind: Kind,
        batch: Sequence[NewRecord],
        *,
        lane: int = records.BULK,
        before_commit: BeforeCommit | None = None,
    ) -> Written:
        """Commit a batch of records with distinct ids; findable by their words from then on.

        Args:
            lane: which records' vectors come first, `records.INTERACTIVE` or `records.BULK`.
            before_commit: what else belongs to the same transaction. It is run again when the transaction is.

        Raises:
            Invalid: an id or a payload that cannot be stored as it is.
        """
        refuse_unstorable(batch)
        large = sum(len(record.text or "") for record in batch) > LARGE_BATCH
        prepared = await _beside(large, _prepared, kind, batch)
        if not prepared:
            return Written(0, 0, 0, (), {})
        terms_of = BatchTerms(self.averages, collection)
        if collection.policy.keep_terms:
            known = await self._known(tenant, collection, prepared) if large else frozenset()
            await _beside(
                large, terms_of.learn, {one.text_hash: one.text for one in prepared if one.text_hash not in known}
            )
        written = await _at_last_alone(
            lambda alone: self._write(tenant, collection, kind, prepared, terms_of, lane, before_commit, alone=alone)
        )
        if collection.policy.keep_terms:
            self.averages.add(collection, terms_of.lengths(written.new_contents))
        if written.new_contents:
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
        terms_of: BatchTerms,
        lane: int,
        before_commit: BeforeCommit | None,
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
                # What was there a moment ago, and is new all the same, went with its last record meanwhile.
                terms_of.learn({one.text_hash: one.text for one in prepared if one.text_hash in written.new_contents})
                rows = {content: terms_of.row(key) for key, content in written.new_contents.items()}
                await terms.write(tx, collection.id, rows)
            if before_commit is not None:
                await before_commit(tx, written)
        return written

    async def _known(self, tenant: int, collection: Collection, prepared: Sequence[PreparedRecord]) -> frozenset[bytes]:
        """The texts that are contents already, so that nobody analyses them again."""
        async with self._pool.tenant(tenant) as tx:
            return await records.known(tx, collection.id, [one.text_hash for one in prepared])


async def _beside(large: bool, work: Callable[..., T], *arguments: Any) -> T:
    """Run work in a thread if it is large, so that the other requests go on."""
    return await asyncio.to_thread(work, *arguments) if large else work(*arguments)


def _prepared(kind: Kind, batch: Sequence[NewRecord]) -> list[PreparedRecord]:
    return sorted((prepare(kind, record) for record in batch), key=lambda record: record.id)


async def _at_last_alone(work: Callable[[bool], Awaitable[T]]) -> T:
    """Run a write again while others are in its way, and in the end without them."""
    tries = count()
    return await retried(lambda: work(next(tries) >= TRIES_BESIDE_OTHERS))


def refuse_unstorable(batch: Sequence[NewRecord]) -> None:
    """Invalid, with a fault for each id and each payload that cannot be stored as it is."""
    faults = []
    for place, record in enumerate(batch):
        if not record.id or not fit_for_id(record.id):
            faults.append(Fault(f"/{place}/id", "invalid_value", BAD_ID))
        if not is_json(record.payload):
            faults.append(Fault(f"/{place}/payload", "invalid_value", NOT_JSON))
    if faults:
        raise Invalid(faults[0].message, faults=faults)


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
