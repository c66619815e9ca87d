"""Writer: the one way in. A function of the app runs in a unit of work; the writer sees to all that is around it."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

from likewise.db import collections, deletions, records
from likewise.db.collections import CollectionRow, DroppedCollection, NewView, RecentCollections
from likewise.db.contents import ContentKey
from likewise.db.deletions import DeletionQuery
from likewise.db.failures import CollectionGone
from likewise.db.pool import Pool, retried
from likewise.db.records import PreparedRecord, StoragePolicy, WriteOutcome
from likewise.db.text_key import TextKeys
from likewise.embedding.embedder import Embedder
from likewise.embedding.models import ModelSpec
from likewise.embedding.provider import estimated_tokens
from likewise.errors import Conflict, NotFound
from likewise.ingest.backlog import Backlog
from likewise.ingest.batch import prepare_batch, refuse_long, refuse_unstorable, views_beside
from likewise.ingest.batch_index import BatchIndex, TermAverages
from likewise.ingest.cache_invalidation import CacheInvalidation
from likewise.ingest.fair_semaphore import FairSemaphore
from likewise.ingest.group_commit import GroupCommit
from likewise.ingest.notifications import WakeSignal
from likewise.ingest.unit_of_work import LARGE_BATCH, AnswerStore, Target, UnitOfWork, store
from likewise.kind import Kind, NewRecord, Policy, View
from likewise.observe.steps import stored
from likewise.sealing import about_content
from likewise.search.analyzer import ANALYZER
from likewise.vectors.store import VectorStore

T = TypeVar("T")

NOTHING = WriteOutcome({}, {})

# Up to here writes that come at once share transactions; what is larger has enough of its own to do.
SMALL_BATCH = 16
# Tries of a write beside others; after that it has the collection to itself for a moment.
TRIES_BESIDE_OTHERS = 3


@dataclass(frozen=True)
class NewCollection:
    """The policy and the model that a collection is made with; without one, the default when it is made."""

    spec: ModelSpec | None
    policy: Policy


@dataclass(frozen=True)
class Destination:
    """The collection that a write goes to, of this kind; with `new` the first write makes it."""

    name: str
    kind: Kind
    new: NewCollection | None = None


class Writer:
    """Stores batches of records and deletes records; a worker adds their vectors later.

    It sees to retries, locks, permits for connections, the grouping of small writes, the bound of what may wait, the
    making of a collection by its first write, and what follows a commit: averages, caches and wake signals.
    """

    def __init__(
        self,
        pool: Pool,
        embedder: Embedder,
        recent: RecentCollections,
        backlog: Backlog,
        text_keys: TextKeys,
        store: VectorStore,
        wake_signal: WakeSignal,
        cache_invalidation: CacheInvalidation,
    ) -> None:
        self._pool = pool
        self._embedder = embedder
        self._recent = recent
        self._text_keys = text_keys
        self._vectors = store
        # The other connections are for those who search meanwhile.
        self._connections = FairSemaphore(max(1, pool.max_size // 2))
        self.backlog = backlog
        self._wake_signal = wake_signal
        self._cache_invalidation = cache_invalidation
        self._groups = GroupCommit(self._store)
        self.averages = TermAverages(text_keys.sealing)

    async def close(self) -> None:
        """Wait for the writes that are under way."""
        await self._groups.close()

    async def write(
        self, tenant: int, into: Destination, batch: Sequence[NewRecord], *, lane: int = records.BULK
    ) -> tuple[CollectionRow, WriteOutcome]:
        """Commit a batch of records with distinct ids; findable by their words from then on.

        Small batches that come at once share a transaction.

        Args:
            lane: which records' vectors come first, `records.INTERACTIVE` or `records.BULK`.

        Returns:
            The collection that it went into, and what became of each record.

        Raises:
            NotFound: there is no such collection, and the destination does not say how to make it.
            Conflict: the collection is of another kind.
            Invalid: an id or a payload that cannot be stored as it is, or a text that the policy finds too long.
            Overloaded: as many texts wait for their vectors as may.
            TooManyRequests: so many of this tenant's.
        """
        try:
            return await self._write(*await self._prepare(tenant, into, batch, lane))
        except CollectionGone:
            # It was dropped, and perhaps made again, since it was looked up.
            self._recent.forget(tenant, into.name)
            return await self._write(*await self._prepare(tenant, into, batch, lane))

    async def transaction(
        self,
        tenant: int,
        into: Destination,
        batch: Sequence[NewRecord],
        once: Callable[[UnitOfWork], Awaitable[T]],
        *,
        lane: int = records.BULK,
        answers: AnswerStore | None = None,
    ) -> T:
        """Run a function in a transaction with a prepared batch, and commit; returns what it returned.

        Args:
            once: compares, decides, stores and saves through its unit of work alone, for it is run again when another
                write is in the way.
            lane: as in `write`, and so are the errors.
            answers: where `unit.save` keeps the answer.
        """
        try:
            return await self._commit(*await self._prepare(tenant, into, batch, lane), once, answers)
        except CollectionGone:
            self._recent.forget(tenant, into.name)
            return await self._commit(*await self._prepare(tenant, into, batch, lane), once, answers)

    async def delete(self, tenant: int, collection: CollectionRow, record: str) -> bool:
        """Delete a record with everything that hangs on it alone; False if it was not there."""
        return await self.delete_many(tenant, collection, [record]) > 0

    async def delete_many(self, tenant: int, collection: CollectionRow, ids: Sequence[str]) -> int:
        """Delete those of the records that are there, in one transaction; returns how many were."""
        return await self._delete(tenant, collection, deletions.by_ids(ids))

    async def delete_parent(self, tenant: int, collection: CollectionRow, parent: str) -> int:
        """Delete all records of a parent; returns how many there were."""
        return await self._delete(tenant, collection, deletions.of_parent(parent))

    async def delete_with(self, tenant: int, collection: CollectionRow, field: str, value: str) -> int:
        """Delete all records that have this text in an indexed field, at the moment that they go; returns how many."""
        return await self._delete(tenant, collection, deletions.with_field(field, value))

    async def drop(self, tenant: int, collection: CollectionRow) -> bool:
        """Remove a collection with everything in it; False if it was not there."""

        async def once() -> DroppedCollection:
            async with self._pool.tenant(tenant) as tx:
                dropped = await collections.drop(tx, collection.id)
                self._cache_invalidation.send(tx, dropped.text_hashes)
                await self._vectors.drop(tx, dropped.generations)
            return dropped

        # It waits for all who read the tables, and one of them may wait for it.
        dropped = await retried(once)
        self._recent.forget(tenant, collection.name)
        await self._cache_invalidation.forget(collection, dropped.text_hashes)
        return dropped.was_there

    async def _delete(self, tenant: int, collection: CollectionRow, query: DeletionQuery) -> int:
        async def once(unit: UnitOfWork) -> int:
            return await unit.delete(query)

        # Nothing is stored, in whichever lane.
        target = Target(tenant, collection.id, records.BULK, collection, StoragePolicy(collection.views))
        return await self._commit(target, [], once)

    async def _prepare(
        self, tenant: int, into: Destination, batch: Sequence[NewRecord], lane: int
    ) -> tuple[Target, list[PreparedRecord]]:
        """Refuse what cannot be stored, or may not be now; else clean and hash it."""
        collection = await self._open(tenant, into)
        if collection.policy.on_long == "refuse":
            await refuse_long(self._embedder, collection, into.kind, batch)
        refuse_unstorable(batch)
        beside = views_beside(collection, into.kind)
        if sum(len(record.text or "") for record in batch) > LARGE_BATCH:
            prepared = await asyncio.to_thread(prepare_batch, into.kind, batch, beside)
        else:
            prepared = prepare_batch(into.kind, batch, beside)
        if lane == records.BULK:
            for model, tokens in _tokens_of(collection, prepared).items():
                self.backlog.admit(tenant, model, tokens)
        return Target(tenant, collection.id, lane, collection, self._storage(collection, into.kind)), prepared

    async def _open(self, tenant: int, into: Destination) -> CollectionRow:
        """The collection of a destination; one that is not there is made, where the destination says how."""
        try:
            collection = await self._recent.get(tenant, into.name)
        except NotFound:
            if into.new is None:
                raise
            collection = await self._make(tenant, into, into.new)
        refuse_other_kind(collection, into.kind)
        return collection

    async def _make(self, tenant: int, into: Destination, new: NewCollection) -> CollectionRow:
        spec = new.spec or self._embedder.spec()
        dimension = await self._embedder.dimension(spec)
        views = [await self._new_view(view, spec) for view in into.kind.beside]

        async def once() -> None:
            async with self._pool.tenant(tenant) as tx:
                await collections.make(
                    tx,
                    into.name,
                    kind=into.kind.name,
                    analyzer=ANALYZER,
                    policy=new.policy,
                    model=spec.name,
                    dimension=dimension,
                    views=views,
                    text_keys=self._text_keys,
                )

        try:
            await retried(once)
        except Conflict as error:
            # Another made it meanwhile.
            if error.code != "collection_exists":
                raise
        return await self._recent.get(tenant, into.name)

    async def _new_view(self, view: View, spec: ModelSpec) -> NewView:
        """The view as a collection is made with it, its texts embedded by its own model or the collection's."""
        if view.is_made:
            return NewView(view.name, view.has_terms, "", view.dimension, view.space)
        if not view.embedded:
            return NewView(view.name, view.has_terms)
        own = spec if view.model is None else self._embedder.known(view.model)
        return NewView(view.name, view.has_terms, own.name, await self._embedder.dimension(own))

    async def _write(self, target: Target, prepared: Sequence[PreparedRecord]) -> tuple[CollectionRow, WriteOutcome]:
        if not prepared:
            return target.collection, NOTHING
        if len(prepared) > SMALL_BATCH or sum(len(one.text) for one in prepared) > LARGE_BATCH:
            return target.collection, await self._store(target, prepared)
        return target.collection, await self._groups.write(target, prepared)

    async def _store(self, target: Target, prepared: Sequence[PreparedRecord]) -> WriteOutcome:
        return await self._commit(target, prepared, store)

    async def _commit(
        self,
        target: Target,
        prepared: Sequence[PreparedRecord],
        once: Callable[[UnitOfWork], Awaitable[T]],
        answers: AnswerStore | None = None,
    ) -> T:
        """Run a unit of work until it is committed: again while others are in its way, and in the end without them."""
        tries = count()
        index = BatchIndex(self.averages, self._vectors, target.collection)

        async def attempt() -> tuple[T, UnitOfWork]:
            alone = next(tries) >= TRIES_BESIDE_OTHERS
            permit = self._connections.permit(target.tenant)
            async with self._pool.in_time(permit), self._pool.tenant(target.tenant) as tx:
                unit = UnitOfWork(tx, target, prepared, alone, index, self._text_keys, answers)
                result = await once(unit)
                self._cache_invalidation.send(tx, [one.text_hash for one in unit.gone])
                if unit.gone:
                    await self._vectors.forget(tx, [one.id for one in unit.gone])
            return result, unit

        result, unit = await retried(attempt)
        await self._follow(unit)
        return result

    async def _follow(self, unit: UnitOfWork) -> None:
        """Count what came and went, tell the caches and wake the worker, once a unit of work is committed."""
        collection, outcome = unit.collection, unit.outcome or NOTHING
        if unit.outcome is not None:
            text_bytes = sum(len(one.text.encode()) for one in unit.records)
            stored(outcome.created, outcome.changed, outcome.unchanged, text_bytes)
        unit.index.count(outcome.new_contents, [one.view for one in unit.gone])
        await self._cache_invalidation.forget(collection, [one.text_hash for one in unit.gone])
        if outcome.waiting:
            for model, tokens in _tokens_of(collection, unit.records, outcome.new_contents).items():
                self.backlog.entered(unit.target.tenant, model, tokens)
            self._wake_signal.send()

    def _storage(self, collection: CollectionRow, kind: Kind) -> StoragePolicy:
        policy, wanted = collection.policy, dict.fromkeys((*kind.indexed, *collection.policy.indexed))

        def seal(key: bytes, text: str) -> bytes:
            return self._text_keys.sealing.seal(text, about_content(collection.tenant, collection.id, key))

        return StoragePolicy(
            views=collection.views,
            indexed=tuple(field for field in wanted if field not in kind.in_text),
            facts=kind.in_text,
            seal=None if policy.keep_text else seal,
        )


def refuse_other_kind(collection: CollectionRow, kind: Kind) -> None:
    """Raise Conflict if a collection is of another kind: only its own app knows what its records mean."""
    if collection.kind != kind.name:
        message = f"This collection belongs to {collection.kind}: it is written, and deleted from, by its routes alone."
        raise Conflict(message, code="collection_of_app")


def _tokens_of(
    collection: CollectionRow, prepared: Sequence[PreparedRecord], among: Collection[ContentKey] | None = None
) -> dict[str, int]:
    """The tokens of texts that wait for each model: of all contents of a batch, or of those `among` them."""
    # Of the first view without an object for each record: most may be there already.
    waiting = (one.text for one in prepared if among is None or (0, one.text_hash) in among)
    first = sum(map(estimated_tokens, waiting))
    tokens = {collection.active.model: first} if first else {}
    beside = [one for record in prepared for one in record.beside if one.waits]
    if beside:
        models = {view.number: view.generation.model for view in collection.views if view.generation is not None}
        for one in beside:
            if among is None or one.key in among:
                tokens[models[one.view]] = tokens.get(models[one.view], 0) + one.tokens
    return tokens
