"""CollectionsService: what the general API does, for routes and for programs alike."""

import builtins
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from likewise.apps.collections import schemas
from likewise.db import collections, lookups, waiting
from likewise.db.collections import CollectionRow
from likewise.db.lookups import StoredRecord
from likewise.db.pool import retried
from likewise.db.records import BULK, INTERACTIVE, WriteOutcome
from likewise.errors import Fault, Invalid, NotFound
from likewise.ingest.batch import refuse_repeats
from likewise.ingest.unit_of_work import AnswerStore, UnitOfWork
from likewise.ingest.writer import Destination, NewCollection, refuse_other_kind
from likewise.kind import BATCH, Kind, NewRecord, Policy
from likewise.runtime import Runtime
from likewise.search.analyzer import ANALYZER
from likewise.search.hits import GroupHit, RecordHit
from likewise.search.options import SearchRequest

KIND = Kind(name="collection")


@dataclass(frozen=True)
class WriteAnswer:
    """Counts of a write. In NDJSON a pointer's first part is the line, counted from 0."""

    created: int
    changed: int
    unchanged: int
    # Records that were not stored (NDJSON), or have no vector (`wait`).
    failed: list[Fault]

    def __add__(self, other: "WriteAnswer") -> "WriteAnswer":
        """Sum up two batches."""
        return WriteAnswer(
            self.created + other.created,
            self.changed + other.changed,
            self.unchanged + other.unchanged,
            self.failed + other.failed,
        )


@dataclass(frozen=True)
class SearchResult:
    """Hits, best first; `degraded` names parts that were away, `more` says whether another page follows."""

    hits: list[schemas.HitAnswer]
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

    async def list(self, tenant: int, limit: int, after: str | None) -> builtins.list[schemas.CollectionAnswer]:
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
        answers: AnswerStore | None = None,
    ) -> schemas.CollectionAnswer:
        """Make a collection.

        Raises:
            Conflict: there is one of this name.
            Invalid: the model is not one that the settings allow.
            Invalid: the name is not one that the HTTP API could call it by.
        """
        if not re.fullmatch(schemas.NAME, name):
            raise Invalid.at("/name", schemas.NAME_IN_WORDS)
        spec = self._runtime.embedder.spec(model)
        dimension = await self._runtime.embedder.dimension(spec)

        async def once() -> schemas.CollectionAnswer:
            async with self._runtime.pool.tenant(tenant) as tx:
                made = await collections.make(
                    tx,
                    name,
                    kind=KIND.name,
                    analyzer=ANALYZER,
                    policy=policy or KIND.policy,
                    model=spec.name,
                    dimension=dimension,
                    text_keys=self._runtime.text_keys,
                )
                if answers is not None:
                    await answers.save(tx, _collection_view(made))
            return _collection_view(made)

        return await retried(once)

    async def get(self, tenant: int, name: str) -> schemas.CollectionAnswer:
        """One collection; NotFound if there is none."""
        return _collection_view(await self._named(tenant, name))

    async def drop(self, tenant: int, name: str) -> None:
        """Remove a collection with everything in it; Conflict if it is that of an app which is here."""
        collection = await self._named(tenant, name)
        # Of an app that is not here nobody else could drop it, and nothing of its kind is needed for that.
        if collection.kind in self._runtime.kinds:
            refuse_other_kind(collection, KIND)
        if not await self._runtime.writer.drop(tenant, collection):
            raise NotFound("There is no collection of this name.", code="collection_not_found")

    async def add(self, tenant: int, name: str, records: Sequence[NewRecord], *, wait: bool = False) -> WriteAnswer:
        """Store any number of records in batches of 500, each whole; the collection is made if it is not there.

        Raises:
            Invalid: the name is not one that a collection can have; otherwise as `write`.
        """
        if not schemas.NAME_IN_PATH.fullmatch(name):
            raise Invalid.at("/name", schemas.NAME_IN_WORDS)
        new = NewCollection(None, KIND.policy) if re.fullmatch(schemas.NAME, name) else None
        into, total = Destination(name, KIND, new), WriteAnswer(0, 0, 0, [])
        for start in range(0, max(1, len(records)), BATCH):
            try:
                part = await self._write(tenant, into, records[start : start + BATCH], wait, None)
            except NotFound:
                if new is not None:
                    raise
                # It would be the collection of an app, which alone makes such ones.
                raise Invalid.at("/name", schemas.NAME_IN_WORDS) from None
            total += replace(part, failed=[_moved_by(start, fault) for fault in part.failed])
        return total

    async def write(
        self,
        tenant: int,
        name: str,
        batch: Sequence[NewRecord],
        *,
        wait: bool = False,
        answers: AnswerStore | None = None,
    ) -> WriteAnswer:
        """Store a batch, all or nothing; with `wait`, its vectors too: `failed` names records that can have none.

        `answers` keep what is known in the transaction: not those.

        Raises:
            Invalid: two records with one id, or a text over the model's limit where the policy refuses those.
            Conflict: the collection is an app's.
            ModelUnavailable: with `wait`, the records are stored and the model is away.
        """
        refuse_same_ids(batch)
        if not batch:
            # Nobody would find out that it is gone.
            self._recent.forget(tenant, name)
        return await self._write(tenant, Destination(name, KIND), batch, wait, answers)

    async def _write(
        self, tenant: int, into: Destination, batch: Sequence[NewRecord], wait: bool, answers: AnswerStore | None
    ) -> WriteAnswer:
        async def once(unit: UnitOfWork) -> tuple[CollectionRow, WriteOutcome]:
            outcome = await unit.write(await unit.compare(unit.records))
            await unit.save(_write_result(outcome))
            return unit.collection, outcome

        writer, lane = self._runtime.writer, INTERACTIVE if wait else BULK
        if answers is None:
            collection, outcome = await writer.write(tenant, into, batch, lane=lane)
        else:
            collection, outcome = await writer.transaction(tenant, into, batch, once, lane=lane, answers=answers)
        failed = await self._embed_now(tenant, collection, batch, outcome.contents) if wait else []
        return replace(_write_result(outcome), failed=failed)

    async def record(self, tenant: int, name: str, id: str) -> schemas.RecordView:
        """One record; NotFound if there is none."""
        async with self._runtime.pool.tenant(tenant, snapshot=True) as tx:
            collection = await collections.named(tx, name)
            found = await lookups.one(tx, collection.id, collection.active.id, id)
        if found is None:
            raise NotFound("There is no record of this id.", code="record_not_found")
        return _record_view(found)

    async def delete(self, tenant: int, name: str, id: str) -> None:
        """Remove a record; NotFound if there is none, Conflict if the collection is an app's."""
        collection = await self._named(tenant, name)
        refuse_other_kind(collection, KIND)
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
            generations = [view.generation for view in collection.views if view.generation is not None]
            left = sum([await waiting.count(tx, one.id) for one in generations])
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


def _moved_by(start: int, fault: Fault) -> Fault:
    """The fault of a batch that begins at `start`, at its place among all records."""
    return fault.moved("", lambda place: f"/{start + place}")


def _write_result(written: WriteOutcome) -> WriteAnswer:
    return WriteAnswer(written.created, written.changed, written.unchanged, [])


def refuse_same_ids(batch: Sequence[NewRecord]) -> None:
    """Invalid, with a fault for each record whose id an earlier one has."""
    refuse_repeats([record.id for record in batch], "/{}/id", "An earlier record of this batch has the same id.")


def _collection_view(one: CollectionRow) -> schemas.CollectionAnswer:
    return schemas.CollectionAnswer(
        one.name, one.kind, one.active.model, one.active.dimension, one.policy, one.created_at
    )


def _record_view(one: StoredRecord) -> schemas.RecordView:
    state: schemas.VectorState = (
        "ready" if one.truncated is not None else "failed" if one.state == "failed" else "waiting"
    )
    return schemas.RecordView(
        one.id,
        one.text,
        one.payload,
        one.parent,
        one.status,
        one.occurred_at,
        one.created_at,
        one.updated_at,
        state,
        one.truncated,
    )


def _hit(one: RecordHit) -> schemas.HitAnswer:
    return schemas.HitAnswer(
        one.record.id,
        one.score,
        one.similarity,
        one.lexical_score,
        one.found_by,
        one.group if isinstance(one, GroupHit) else None,
        _record_view(one.record),
    )
