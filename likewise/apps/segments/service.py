"""SegmentsService: what the routes of document segments do, for routes and for programs alike."""

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar
from uuid import UUID

from likewise.apps.collections.service import Save
from likewise.apps.repeats import refuse_repeats
from likewise.apps.segments.accepted import Accepted, AcceptedBatch, AcceptedDocument
from likewise.apps.segments.documents import NewSegment, Part, parts_of, segments_of
from likewise.apps.segments.hits import SegmentSearchResult
from likewise.apps.segments.kind import KIND, collection_name, policy_of
from likewise.apps.segments.naming import TenantNames
from likewise.apps.segments.points import point_id
from likewise.apps.segments.search import SearchJob, SegmentQuery, SegmentSearches
from likewise.apps.segments.writing import Labels, Storing
from likewise.cleaning import fit_for_id
from likewise.db import collections, segments
from likewise.db.collections import CollectionRow
from likewise.db.failures import CollectionGone
from likewise.db.transaction import Tx
from likewise.embedding.models import ModelSpec
from likewise.embedding.texts import refuse_unreadable
from likewise.errors import Conflict, Invalid, NotFound
from likewise.ingest.tasks import Progress
from likewise.ingest.writer import BAD_ID
from likewise.runtime import Runtime
from likewise.search.analyzer import ANALYZER

T = TypeVar("T")
# Waits for the parts of a document.
Splitting = Callable[[Coroutine[Any, Any, list[Part]]], Awaitable[list[Part]]]


class SegmentsService:
    """Document segments of many tenants: stored, embedded by jobs, searched, deleted."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._settings = runtime.settings
        self._names = TenantNames(runtime.pool)
        self.searches = SegmentSearches(runtime, self._names)

    def known(self, model: str | None) -> ModelSpec:
        """The model of that name; see SegmentSearches.known."""
        return self.searches.known(model)

    async def embed(
        self,
        tenant: int,
        asset_id: str,
        segment_id: str,
        text: str,
        *,
        model: str | None = None,
        model_ver: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        save: Save | None = None,
    ) -> Accepted:
        """Store a segment, and have it embedded unless it holds this text already.

        Raises:
            Invalid: an id, text or metadata that cannot be stored, or a model that the settings do not allow.
            Overloaded, TooManyRequests: as many texts wait as may.
        """
        segment = NewSegment(segment_id, text, metadata or {})
        spec = self.known(model)
        labels = await self._labels(tenant, asset_id, spec, model_ver)
        point = point_id(labels.tenant, asset_id, segment_id, labels.model, labels.model_ver)

        def told(job: UUID, state: str) -> Accepted:
            return Accepted(job, asset_id, segment_id, point, state)

        telling = _Telling(told, save)
        await self._store(tenant, spec, Storing(labels, [segment], telling.stored, one=True))
        return telling.known

    async def embed_batch(
        self,
        tenant: int,
        asset_id: str,
        batch: Sequence[NewSegment],
        *,
        model: str | None = None,
        model_ver: str | None = None,
        save: Save | None = None,
    ) -> AcceptedBatch:
        """Store segments of an asset, all or none, with one job for all of them; errors as `embed`."""
        message = "An earlier segment of this batch has the same id."
        refuse_repeats([one.segment_id for one in batch], "/segments/{}/segment_id", message)
        spec = self.known(model)
        labels = await self._labels(tenant, asset_id, spec, model_ver)

        def told(job: UUID, state: str) -> AcceptedBatch:
            return AcceptedBatch(job, asset_id, len(batch), state)

        telling = _Telling(told, save)
        await self._store(tenant, spec, Storing(labels, batch, telling.stored))
        return telling.known

    async def embed_document(
        self,
        tenant: int,
        asset_id: str,
        text: str,
        *,
        model: str | None = None,
        model_ver: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        overlap: int | None = None,
        splitting: Splitting | None = None,
        save: Save | None = None,
    ) -> AcceptedDocument:
        """Split a text into the segments `chunk_0`, `chunk_1`, ... and store them; errors as `embed`.

        Of the asset's other segments those named `chunk_N` are removed in the same transaction.

        Args:
            splitting: waits for the parts, for who may leave before anything is written.

        Raises:
            ModelUnavailable: nobody can say what the model reads at a time.
        """
        refuse_unreadable([text])
        spec = self.known(model)
        labels = await self._labels(tenant, asset_id, spec, model_ver)
        finding = parts_of(self._runtime.embedder, text, spec.name, max_tokens=max_tokens, overlap=overlap)
        parts = await (finding if splitting is None else splitting(finding))

        def told(job: UUID, state: str) -> AcceptedDocument:
            return AcceptedDocument(job, asset_id, len(parts), state, parts)

        telling = _Telling(told, save)
        batch = segments_of(text, parts, metadata or {})
        await self._store(tenant, spec, Storing(labels, batch, telling.stored), whole=True)
        return telling.known

    async def search(self, tenant: int, asked: SegmentQuery) -> SegmentSearchResult:
        """The segments that fit best; see SegmentSearches.search."""
        return await self.searches.search(tenant, asked)

    async def search_later(self, tenant: int, asked: SegmentQuery, *, save: Save | None = None) -> SearchJob:
        """Have a search done by a worker; see SegmentSearches.later."""
        return await self.searches.later(tenant, asked, save=save)

    async def run_search(self, tenant: int, input: bytes | None, progress: Progress) -> Mapping[str, Any]:
        """Do a search that `search_later` put off; a Handler of tasks."""
        return await self.searches.task(tenant, input, progress)

    async def delete_point(self, tenant: int, point: UUID) -> None:
        """Remove a segment; NotFound if there is none with this id."""
        gone = 0
        for collection in await self._collections(tenant):
            gone += await self._runtime.writer.delete_with(tenant, collection, "point_id", str(point))
        if not gone:
            raise NotFound("There is no segment of this id.", code="point_not_found")

    async def delete_asset(self, tenant: int, asset_id: str) -> None:
        """Remove all segments of an asset, of every model; NotFound if there are none."""
        gone = 0
        for collection in await self._collections(tenant):
            gone += await self._runtime.writer.delete_parent(tenant, collection, asset_id)
        if not gone:
            raise NotFound("There is no asset of this id.", code="asset_not_found")

    async def _labels(self, tenant: int, asset_id: str, spec: ModelSpec, model_ver: str | None) -> Labels:
        return Labels(await self._names.of(tenant), asset_id, spec.hub_id, model_ver or self._settings.model_ver)

    async def _store(self, tenant: int, spec: ModelSpec, storing: Storing, *, whole: bool = False) -> None:
        _refuse_unfit(storing.labels.asset_id, storing.segments)
        name = collection_name(spec)
        try:
            await self._write(tenant, name, spec, storing, whole=whole)
        except CollectionGone:
            # It was dropped since it was looked up.
            self._runtime.recent.forget(tenant, name)
            await self._write(tenant, name, spec, storing, whole=whole)

    async def _write(self, tenant: int, name: str, spec: ModelSpec, storing: Storing, *, whole: bool) -> None:
        collection = await self._made(tenant, name, spec)
        storing.collection, storing.generation = collection.id, collection.active.id
        await self._runtime.writer.write(
            tenant,
            collection,
            KIND,
            storing.records,
            resolve=storing.resolve,
            before_commit=storing.before_commit,
            leaving=storing.leaving if whole else None,
        )

    async def _made(self, tenant: int, name: str, spec: ModelSpec) -> CollectionRow:
        """The collection of a model; it is made by the first write."""
        recent = self._runtime.recent
        with suppress(NotFound):
            return await recent.get(tenant, name)
        try:
            await collections.make(
                self._runtime.pool,
                tenant,
                name,
                kind=KIND.name,
                analyzer=ANALYZER,
                policy=policy_of(self._settings),
                model=spec.name,
                dimension=await self._runtime.embedder.dimension(spec),
                text_keys=self._runtime.text_keys,
            )
        except Conflict as error:
            # Another made it meanwhile.
            if error.code != "collection_exists":
                raise
        return await recent.get(tenant, name)

    async def _collections(self, tenant: int) -> list[CollectionRow]:
        async with self._runtime.pool.tenant(tenant, snapshot=True) as tx:
            return [await collections.named(tx, name) for name in await segments.collections_of_kind(tx, KIND.name)]


class _Telling(Generic[T]):
    """What a write will answer, known in its transaction, where `save` hears of it."""

    def __init__(self, told: Callable[[UUID, str], T], save: Save | None) -> None:
        self._told = told
        self._save = save
        self._known: T | None = None

    @property
    def known(self) -> T:
        """It, once the write is done."""
        assert self._known is not None, "nothing has been written"
        return self._known

    async def stored(self, tx: Tx, job: UUID, state: str) -> None:
        """Take in which job answers, and how far it is."""
        self._known = self._told(job, state)
        if self._save is not None:
            await self._save(tx, self._known)


def _refuse_unfit(asset_id: str, batch: Sequence[NewSegment]) -> None:
    """What a program gives is not checked by a schema."""
    if not asset_id or not fit_for_id(asset_id):
        raise Invalid.at("/asset_id", BAD_ID)
    if not all(segment.segment_id and fit_for_id(segment.segment_id) for segment in batch):
        raise Invalid.at("/segment_id", BAD_ID)
    refuse_unreadable([segment.text for segment in batch])
