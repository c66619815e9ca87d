"""Writer: the one way in. Records, contents, terms and the queue's entries, in one transaction."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

from likewise.cleaning import cleaned, cleaned_json, fit_for_id, is_json
from likewise.db import collections, deletions, records, terms
from likewise.db.collections import CollectionRow
from likewise.db.deletions import Deletion
from likewise.db.pool import Pool, retried
from likewise.db.records import PreparedRecord, StoragePolicy, WriteOutcome
from likewise.db.text_key import TextKeys
from likewise.db.transaction import Tx
from likewise.errors import Fault, Invalid
from likewise.ingest.backlog import Backlog
from likewise.ingest.batch_terms import BatchTerms, TermAverages
from likewise.ingest.cache_invalidation import CacheInvalidation
from likewise.ingest.fair_semaphore import FairSemaphore
from likewise.ingest.grouping import Grouping
from likewise.ingest.notifications import WakeSignal
from likewise.kind import Kind, NewRecord
from likewise.observe.request_id import REQUEST_ID
from likewise.observe.steps import stored
from likewise.sealing import about_content
from likewise.stopping import stop

T = TypeVar("T")
BeforeCommit = Callable[[Tx, WriteOutcome], Awaitable[None]]
Resolve = Callable[[Tx, Sequence[PreparedRecord]], Awaitable[Sequence[PreparedRecord]]]
Leaving = Callable[[Tx], Awaitable[Sequence[tuple[int, int]]]]

NOTHING = WriteOutcome({}, {})

NOT_JSON = (
    "A payload is a JSON object; its numbers are finite, integers have 64 bits at most, and its keys are texts that "
    "differ without NUL and halves of surrogate pairs, which become U+FFFD."
)
BAD_ID = "An id is a text without control characters and without U+FFFD, a character that was lost on the way."

# A batch of so many characters takes long enough to analyse (10 ms) that other requests should not wait for it.
LARGE_BATCH = 20_000
# Up to here writes that come at once share transactions; what is larger has enough of its own to do.
SMALL_BATCH = 16
# Tries of a write beside others; after that it has the collection to itself for a moment.
TRIES_BESIDE_OTHERS = 3


class Writer:
    """Stores batches of records; a worker adds their vectors later."""

    def __init__(
        self,
        pool: Pool,
        wake_signal: WakeSignal,
        backlog: Backlog,
        text_keys: TextKeys,
        cache_invalidation: CacheInvalidation,
    ) -> None:
        self._pool = pool
        self._text_keys = text_keys
        # The other connections are for those who search meanwhile.
        self._connections = FairSemaphore(max(1, pool.max_size // 2))
        self.backlog = backlog
        self._wake_signal = wake_signal
        self._cache_invalidation = cache_invalidation
        self._groups: Grouping[tuple[int, int, int]] = Grouping()
        self.averages = TermAverages(text_keys.sealing)

    async def close(self) -> None:
        """Wait for the writes that are under way."""
        await self._groups.close()

    async def write(
        self,
        tenant: int,
        collection: CollectionRow,
        kind: Kind,
        batch: Sequence[NewRecord],
        *,
        lane: int = records.BULK,
        before_commit: BeforeCommit | None = None,
        resolve: Resolve | None = None,
        leaving: Leaving | None = None,
    ) -> WriteOutcome:
        """Commit a batch of records with distinct ids; findable by their words from then on.

        Args:
            lane: which records' vectors come first, `records.INTERACTIVE` or `records.BULK`.
            before_commit: what else belongs to the same transaction. It is run again when the transaction is.
            resolve: what the records are in view of those that are stored, with the same ids; run first, and again
                as the other.
            leaving: records, each with its content, that are deleted in the same transaction.

        Raises:
            Invalid: an id or a payload that cannot be stored as it is.
            Overloaded: as many texts wait for their vectors as may.
            TooManyRequests: so many of this tenant's.
        """
        refuse_unstorable(batch)
        large = _is_large(record.text or "" for record in batch)
        prepared = await _beside(large, _prepared, kind, batch)
        if not prepared and before_commit is None:
            return NOTHING
        if lane == records.BULK:
            self.backlog.admit(tenant, collection.active.model, sum(one.tokens for one in prepared))
        work = _Work(tenant, collection, kind, lane, before_commit, resolve, leaving)
        if before_commit is not None or resolve is not None or large or len(prepared) > SMALL_BATCH:
            return await self._store(work, prepared)
        return await self._groups.write((tenant, collection.id, lane), prepared, lambda group: self._store(work, group))

    async def _store(self, work: "_Work", prepared: Sequence[PreparedRecord]) -> WriteOutcome:
        """Commit records, in spite of others who write the same, and count what came and went."""
        tenant, collection = work.tenant, work.collection
        terms_of = BatchTerms(self.averages, collection) if collection.policy.keep_terms else None
        written = await _at_last_alone(lambda alone: self._write(work, prepared, terms_of, alone=alone))
        stored(written.created, written.changed, written.unchanged, sum(len(one.text.encode()) for one in prepared))
        if terms_of is not None:
            self.averages.add(collection, terms_of.lengths(written.new_contents))
        await self._went(collection, written.gone)
        if written.waiting:
            entered = sum(one.tokens for one in prepared if one.text_hash in written.new_contents)
            self.backlog.entered(tenant, collection.active.model, entered)
            self._wake_signal.send()
        return written

    async def delete(self, tenant: int, collection: CollectionRow, record: str) -> bool:
        """Take a record away with everything that hangs on it alone; False if it was not there."""
        return await self.delete_many(tenant, collection, [record]) > 0

    async def delete_many(self, tenant: int, collection: CollectionRow, ids: Sequence[str]) -> int:
        """The same with those of the records that are there, in one transaction; returns how many were."""
        return await self._delete(tenant, collection, lambda tx, **how: deletions.delete(tx, collection.id, ids, **how))

    async def delete_parent(self, tenant: int, collection: CollectionRow, parent: str) -> int:
        """The same with all records of a parent."""
        return await self._delete(
            tenant, collection, lambda tx, **how: deletions.delete_parent(tx, collection.id, parent, **how)
        )

    async def delete_with(self, tenant: int, collection: CollectionRow, field: str, value: str) -> int:
        """The same with all records that have this text in an indexed field, at the moment that they go."""
        return await self._delete(
            tenant, collection, lambda tx, **how: deletions.delete_with(tx, collection.id, field, value, **how)
        )

    async def drop(self, tenant: int, collection: CollectionRow) -> bool:
        """Remove a collection with everything in it; False if it was not there."""
        gone: list[bytes] = []

        def tell(tx: Tx, text_hashes: list[bytes]) -> None:
            gone[:] = text_hashes
            self._cache_invalidation.tell(tx, gone)

        dropped = await collections.drop(self._pool, tenant, collection.id, tell)
        await self._cache_invalidation.forget(collection, gone)
        return dropped

    async def _delete(self, tenant: int, collection: CollectionRow, delete: Callable[..., Awaitable[Deletion]]) -> int:
        async def once(alone: bool) -> Deletion:
            async with self._pool.tenant(tenant) as tx:
                deleted = await delete(tx, keep_terms=collection.policy.keep_terms, alone=alone)
                self._cache_invalidation.tell(tx, deleted.gone)
            return deleted

        deleted = await _at_last_alone(once)
        await self._went(collection, deleted.gone)
        return deleted.records

    async def _write(
        self, work: "_Work", prepared: Sequence[PreparedRecord], terms_of: BatchTerms | None, *, alone: bool
    ) -> WriteOutcome:
        tenant, collection = work.tenant, work.collection
        async with self._pool.in_time(self._connections.permit(tenant)), self._pool.tenant(tenant) as tx:
            if not collection.policy.keep_text:
                await self._text_keys.hold(tx)
            if work.resolve is not None:
                prepared = await work.resolve(tx, prepared)
            compared = await records.compare(tx, collection.id, prepared, alone=alone)
            # Postgres stores the records while this process reads their words.
            async with _learning(terms_of, compared.fresh) as learnt:
                written = await records.write(
                    tx,
                    collection.id,
                    compared,
                    self._keeping(work),
                    lane=work.lane,
                    for_job=work.resolve is not None,
                    leaving=[] if work.leaving is None else await work.leaving(tx),
                )
                await learnt
            if terms_of is not None and written.new_contents:
                rows = {content: terms_of.row(key) for key, content in written.new_contents.items()}
                await terms.write(tx, collection.id, rows)
            self._cache_invalidation.tell(tx, written.gone)
            if work.before_commit is not None:
                await work.before_commit(tx, written)
        return written

    def _keeping(self, work: "_Work") -> StoragePolicy:
        tenant, collection, policy = work.tenant, work.collection.id, work.collection.policy

        def seal(key: bytes, text: str) -> bytes:
            return self._text_keys.sealing.seal(text, about_content(tenant, collection, key))

        return StoragePolicy(work.indexed, work.kind.in_text, None if policy.keep_text else seal, policy.keep_terms)

    async def _went(self, collection: CollectionRow, gone: Sequence[bytes]) -> None:
        """Texts have gone, by their hashes: nothing of this process knows them when the caller is answered."""
        if collection.policy.keep_terms:
            self.averages.take_away(collection, len(gone))
        await self._cache_invalidation.forget(collection, gone)


@dataclass(frozen=True)
class _Work:
    """What is written where, and what else belongs to it."""

    tenant: int
    collection: CollectionRow
    kind: Kind
    lane: int
    before_commit: BeforeCommit | None
    resolve: Resolve | None
    leaving: Leaving | None

    @property
    def indexed(self) -> tuple[str, ...]:
        """The payload fields that an index knows of each record."""
        wanted = dict.fromkeys((*self.kind.indexed, *self.collection.policy.indexed))
        return tuple(field for field in wanted if field not in self.kind.in_text)


@contextlib.asynccontextmanager
async def _learning(terms_of: BatchTerms | None, fresh: Sequence[PreparedRecord]) -> AsyncIterator[Awaitable[None]]:
    """The terms of texts that may be new, read beside the block, which awaits them."""

    async def learn() -> None:
        if terms_of is not None:
            texts = {record.text_hash: record.text for record in fresh}
            await _beside(_is_large(texts.values()), terms_of.learn, texts)

    task = asyncio.create_task(learn())
    try:
        yield task
    finally:
        await stop([task])


def _is_large(texts: Iterable[str]) -> bool:
    return sum(map(len, texts)) > LARGE_BATCH


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
        request_id=REQUEST_ID.get(),
    )
