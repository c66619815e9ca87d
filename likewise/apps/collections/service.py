"""CollectionsService: what the general API does, for routes and for programs alike."""

import builtins
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal, TypeVar

from likewise.apps import repeats
from likewise.apps.collections.schemas import NAME, NAME_IN_WORDS
from likewise.db import collections, lookups, waiting
from likewise.db.collections import CollectionRow
from likewise.db.failures import CollectionGone
from likewise.db.lookups import StoredRecord
from likewise.db.records import BULK, INTERACTIVE, WriteOutcome
from likewise.db.transaction import Tx
from likewise.errors import Conflict, Fault, Invalid, NotFound
from likewise.ingest.writer import BeforeCommit
from likewise.kind import Kind, NewRecord, Policy
from likewise.runtime import Runtime
from likewise.search.analyzer import ANALYZER
from likewise.search.hits import GroupHit, RecordHit
from likewise.search.options import SearchRequest

T = TypeVar("T")

KIND = Kind(name="collection", text=lambda record: record.text or "")

# Called in the transaction of a write, before it commits, with what the write will return.
Save = Callable[[Tx, Any], Awaitable[None]]

VectorState = Literal["ready", "waiting", "failed", "skipped"]


@dataclass(frozen=True)
class CollectionView:
    """A collection as callers see it."""

    name: str
    kind: str
    model: str
    dimension: int
    policy: Policy
    created_at: datetime


@dataclass(frozen=True)
class RecordView:
    """A record as callers see it; `vector` says how far its text has come.

    `truncated_tokens` were cut off the end of the text before it was embedded; None as long as it has no vector.
    """

    id: str
    text: str | None
    payload: dict[str, Any]
    parent: str | None
    status: str | None
    occurred_at: datetime | None
    created_at: datetime
    updated_at: datetime
    vector: VectorState
    truncated_tokens: int | None


@dataclass(frozen=True)
class WriteResult:
    """What a batch did; `failed` names records that were not stored (NDJSON), or that have no vector (`wait`)."""

    created: int
    changed: int
    unchanged: int
    failed: list[Fault] = field(default_factory=list)


@dataclass(frozen=True)
class Hit:
    """One record that was found. `similarity` is a cosine; `found_by` says by what: `dense`, `lexical`."""

    id: str
    score: float
    similarity: float | None
    lexical_score: float | None
    found_by: tuple[str, ...]
    group: Any
    record: RecordView


@dataclass(frozen=True)
class SearchResult:
    """Hits, best first; `degraded` names parts that were away, `more` says whether another page follows."""

    hits: list[Hit]
    model: str
    took_ms: float
    degraded: tuple[str, ...] = ()
    more: bool = False
    explanation: dict[str, Any] | None = None


class CollectionsService:
    """Named collections of records: made, written, read and searched."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._recent = runtime.recent

    async def list(self, tenant: int, limit: int, after: str | None) -> builtins.list[CollectionView]:
        """Collections by name, those after the name `after`."""
        async with self._runtime.pool.tenant(tenant, snapshot=True) as tx:
            found = await collections.listed(tx, after=after or "", limit=limit)
        return [_collection_view(one) for one in found]

    async def create(
        self,
        tenant: int,
        name: str,
        model: str | None = None,
        policy: Policy | None = None,
        *,
        save: Save | None = None,
    ) -> CollectionView:
        """Make a collection.

        Raises:
            Conflict: there is one of this name.
            Invalid: the model is not one that the settings allow.
            Invalid: the name is not one that the HTTP API could call it by.
        """
        if not re.fullmatch(NAME, name):
            raise Invalid.at("/name", NAME_IN_WORDS)
        spec = self._runtime.embedder.spec(model)
        made = await collections.make(
            self._runtime.pool,
            tenant,
            name,
            kind=KIND.name,
            analyzer=ANALYZER,
            policy=policy or KIND.policy,
            model=spec.name,
            dimension=await self._runtime.embedder.dimension(spec),
            text_keys=self._runtime.text_keys,
            before_commit=_saving(save, _collection_view),
        )
        return _collection_view(made)

    async def get(self, tenant: int, name: str) -> CollectionView:
        """One collection; NotFound if there is none."""
        return _collection_view(await self._named(tenant, name))

    async def drop(self, tenant: int, name: str) -> None:
        """Remove a collection with everything in it; Conflict if it is an app's."""
        collection = _own(await self._named(tenant, name))
        dropped = await self._runtime.writer.drop(tenant, collection)
        self._recent.forget(tenant, name)
        if not dropped:
            raise NotFound("There is no collection of this name.", code="collection_not_found")

    async def write(
        self, tenant: int, name: str, batch: Sequence[NewRecord], *, wait: bool = False, save: Save | None = None
    ) -> WriteResult:
        """Store a batch, all or nothing; with `wait`, its vectors too: `failed` names records that can have none.

        `save` hears of what is known in the transaction: not of those.

        Raises:
            Invalid: two records with one id, or a text over the model's limit where the policy refuses those.
            Conflict: the collection is an app's.
            ModelUnavailable: with `wait`, the records are stored and the model is away.
        """
        refuse_repeats(batch)
        if not batch:
            # Nobody would find out that it is gone.
            self._recent.forget(tenant, name)
        lane = INTERACTIVE if wait else BULK
        saving = _saving(save, _write_result)
        try:
            collection = _own(await self._recent.get(tenant, name))
            written = await self._write(tenant, collection, batch, lane, saving)
        except CollectionGone:
            # It may have been dropped and made again since it was looked up.
            self._recent.forget(tenant, name)
            collection = _own(await self._recent.get(tenant, name))
            written = await self._write(tenant, collection, batch, lane, saving)
        failed = await self._embed_now(tenant, collection, batch, written.contents) if wait else []
        return replace(_write_result(written), failed=failed)

    async def _write(
        self,
        tenant: int,
        collection: CollectionRow,
        batch: Sequence[NewRecord],
        lane: int,
        before_commit: BeforeCommit | None,
    ) -> WriteOutcome:
        if collection.policy.on_long == "refuse":
            await self._refuse_long(collection, batch)
        return await self._runtime.writer.write(tenant, collection, KIND, batch, lane=lane, before_commit=before_commit)

    async def record(self, tenant: int, name: str, id: str) -> RecordView:
        """One record; NotFound if there is none."""
        async with self._runtime.pool.tenant(tenant, snapshot=True) as tx:
            collection = await collections.named(tx, name)
            found = await lookups.one(tx, collection.id, collection.active.id, id)
        if found is None:
            raise NotFound("There is no record of this id.", code="record_not_found")
        return _record_view(found)

    async def delete(self, tenant: int, name: str, id: str) -> None:
        """Remove a record; NotFound if there is none, Conflict if the collection is an app's."""
        collection = _own(await self._named(tenant, name))
        if not await self._runtime.writer.delete(tenant, collection, id):
            raise NotFound("There is no record of this id.", code="record_not_found")

    async def search(self, tenant: int, name: str, request: SearchRequest) -> SearchResult:
        """Return the records that fit best; see Searcher.search. UnknownKind if the collection's app is not there."""
        found = await self._runtime.searcher.search(tenant, name, request)
        hits = [_hit(one) for one in found.records]
        return SearchResult(hits, found.model, found.took_ms, found.degraded, found.more, found.explanation)

    async def stats(self, tenant: int, name: str) -> dict[str, Any]:
        """Counts of a collection, and the state of its vectors and their index."""
        async with self._runtime.pool.tenant(tenant, snapshot=True) as tx:
            collection = await collections.named(tx, name)
            counts = await lookups.count(tx, collection.id, collection.active.id)
            left = await waiting.count(tx, collection.active.id)
        return {
            "records": counts.records,
            "contents": counts.contents,
            "vectors": counts.vectors,
            "waiting": left,
            "failed": counts.failed,
            "model": collection.active.model,
            "dimension": collection.active.dimension,
            "index": {"none": "exact", "building": "building", "ready": "hnsw"}[collection.active.index_state],
        }

    async def _named(self, tenant: int, name: str) -> CollectionRow:
        async with self._runtime.pool.tenant(tenant, snapshot=True) as tx:
            return await collections.named(tx, name)

    async def _embed_now(
        self, tenant: int, collection: CollectionRow, batch: Sequence[NewRecord], contents: Sequence[int]
    ) -> builtins.list[Fault]:
        """Wait for the vectors; a fault for each record whose text the model could not embed."""
        await self._runtime.worker.embed_now(tenant, collection.active.id, contents)
        async with self._runtime.pool.tenant(tenant) as tx:
            failed = await lookups.failed(tx, collection.id, [record.id for record in batch])
        message = "The record is stored and found by its words; the model could not embed its text."
        return [
            Fault(f"/{place}/text", failed[record.id], message)
            for place, record in enumerate(batch)
            if record.id in failed
        ]

    async def _lengths(self, texts: Sequence[str], model: str) -> Sequence[int]:
        try:
            return await self._runtime.embedder.lengths(texts, model)
        except Invalid as error:
            raise error.moved("/texts", "/{}/text".format) from None

    async def _refuse_long(self, collection: CollectionRow, batch: Sequence[NewRecord]) -> None:
        embedder = self._runtime.embedder
        model = await embedder.opened(collection.active.model)
        lengths = await self._lengths([KIND.text(record) for record in batch], collection.active.model)
        message = f"This collection refuses texts that its model would cut off: at most {model.max_tokens} tokens."
        faults = [
            Fault(f"/{place}/text", "text_too_long", message)
            for place, length in enumerate(lengths)
            if length > model.max_tokens
        ]
        if faults:
            raise Invalid(message, code="text_too_long", faults=faults)


def _own(collection: CollectionRow) -> CollectionRow:
    """What is written here; an app's own are written by the app, which knows what its records mean."""
    if collection.kind != KIND.name:
        message = f"This collection belongs to {collection.kind}: it is written, and deleted from, by its routes alone."
        raise Conflict(message, code="collection_of_app")
    return collection


def _saving(save: Save | None, result: Callable[[T], Any]) -> Callable[[Tx, T], Awaitable[None]] | None:
    """`save` with the result that will be returned, as what a transaction runs before it commits."""
    return None if save is None else lambda tx, done: save(tx, result(done))


def _write_result(written: WriteOutcome) -> WriteResult:
    return WriteResult(written.created, written.changed, written.unchanged)


def refuse_repeats(batch: Sequence[NewRecord]) -> None:
    """Invalid, with a fault for each record whose id an earlier one has."""
    message = "An earlier record of this batch has the same id."
    repeats.refuse_repeats([record.id for record in batch], "/{}/id", message)


def _collection_view(one: CollectionRow) -> CollectionView:
    return CollectionView(one.name, one.kind, one.active.model, one.active.dimension, one.policy, one.created_at)


def _record_view(one: StoredRecord) -> RecordView:
    state: VectorState = "ready" if one.truncated is not None else "failed" if one.state == "failed" else "waiting"
    return RecordView(
        id=one.id,
        text=one.text,
        payload=one.payload,
        parent=one.parent,
        status=one.status,
        occurred_at=one.occurred_at,
        created_at=one.created_at,
        updated_at=one.updated_at,
        vector=state,
        truncated_tokens=one.truncated,
    )


def _hit(one: RecordHit) -> Hit:
    return Hit(
        one.record.id,
        one.score,
        one.similarity,
        one.lexical_score,
        one.found_by,
        one.group if isinstance(one, GroupHit) else None,
        _record_view(one.record),
    )
