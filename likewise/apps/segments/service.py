"""SegmentsService: what the routes of document segments do, for routes and for programs alike."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from likewise.apps.repeats import refuse_repeats
from likewise.apps.segments import rows
from likewise.apps.segments.accepted import Accepted, AcceptedBatch, AcceptedDocument
from likewise.apps.segments.documents import NewSegment, Part, parts_of, segments_of
from likewise.apps.segments.hits import SegmentSearchResult
from likewise.apps.segments.kind import KIND, collection_name, policy_of
from likewise.apps.segments.naming import TenantNames
from likewise.apps.segments.points import point_id
from likewise.apps.segments.search import SearchJob, SegmentQuery, SegmentSearches
from likewise.apps.segments.writing import Labels, SegmentWrite
from likewise.cleaning import fit_for_id
from likewise.db import collections
from likewise.db.collections import CollectionRow
from likewise.embedding.models import ModelSpec
from likewise.embedding.provider import refuse_unreadable
from likewise.errors import Invalid, NotFound
from likewise.ingest.batch import BAD_ID
from likewise.ingest.tasks import Progress
from likewise.ingest.unit_of_work import AnswerStore, UnitOfWork
from likewise.ingest.writer import Destination, NewCollection
from likewise.runtime import Runtime


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
        answers: AnswerStore | None = None,
    ) -> Accepted:
        """Store a segment, and have it embedded unless it holds this text already.

        Raises:
            Invalid: an id, text or metadata that cannot be stored, or a model that the settings do not allow.
            Overloaded, TooManyRequests: as many texts wait as may.
        """
        spec = self.known(model)
        labels = await self._labels(tenant, asset_id, spec, model_ver)
        write = SegmentWrite(labels, [NewSegment(segment_id, text, metadata or {})], about_one=True)
        _refuse_unfit(write)
        point = point_id(labels.tenant, asset_id, segment_id, labels.model, labels.model_ver)

        async def once(unit: UnitOfWork) -> Accepted:
            job, state = await write.store(unit)
            accepted = Accepted(job, asset_id, segment_id, point, state)
            await unit.save(accepted)
            return accepted

        return await self._runtime.writer.transaction(tenant, self._into(spec), write.records, once, answers=answers)

    async def embed_batch(
        self,
        tenant: int,
        asset_id: str,
        batch: Sequence[NewSegment],
        *,
        model: str | None = None,
        model_ver: str | None = None,
        answers: AnswerStore | None = None,
    ) -> AcceptedBatch:
        """Store segments of an asset, all or none, with one job for all of them; errors as `embed`."""
        message = "An earlier segment of this batch has the same id."
        refuse_repeats([one.segment_id for one in batch], "/segments/{}/segment_id", message)
        spec = self.known(model)
        labels = await self._labels(tenant, asset_id, spec, model_ver)
        write = SegmentWrite(labels, batch)
        _refuse_unfit(write)

        async def once(unit: UnitOfWork) -> AcceptedBatch:
            job, state = await write.store(unit)
            accepted = AcceptedBatch(job, asset_id, len(batch), state)
            await unit.save(accepted)
            return accepted

        return await self._runtime.writer.transaction(tenant, self._into(spec), write.records, once, answers=answers)

    async def split(
        self, text: str, model: str | None = None, *, max_tokens: int | None = None, overlap: int | None = None
    ) -> list[Part]:
        """Find the parts of a document that a model reads whole; see `parts_of`. Nothing is stored."""
        refuse_unreadable([text])
        return await parts_of(
            self._runtime.embedder, text, self.known(model).name, max_tokens=max_tokens, overlap=overlap
        )

    async def embed_document(
        self,
        tenant: int,
        asset_id: str,
        text: str,
        parts: Sequence[Part] | None = None,
        *,
        model: str | None = None,
        model_ver: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        overlap: int | None = None,
        answers: AnswerStore | None = None,
    ) -> AcceptedDocument:
        """Split a text into the segments `chunk_0`, `chunk_1`, ... and store them; errors as `embed`.

        Of the asset's other segments those named `chunk_N` are removed in the same transaction.

        Args:
            parts: as `split` finds them, which is done here if they are absent.

        Raises:
            ModelUnavailable: nobody can say what the model reads at a time.
        """
        if parts is None:
            parts = await self.split(text, model, max_tokens=max_tokens, overlap=overlap)
        spec, found = self.known(model), parts
        labels = await self._labels(tenant, asset_id, spec, model_ver)
        write = SegmentWrite(labels, segments_of(text, found, metadata or {}), is_document=True)
        _refuse_unfit(write)

        async def once(unit: UnitOfWork) -> AcceptedDocument:
            job, state = await write.store(unit)
            accepted = AcceptedDocument(job, asset_id, len(found), state, found)
            await unit.save(accepted)
            return accepted

        return await self._runtime.writer.transaction(tenant, self._into(spec), write.records, once, answers=answers)

    async def search(self, tenant: int, asked: SegmentQuery) -> SegmentSearchResult:
        """The segments that fit best; see SegmentSearches.search."""
        return await self.searches.search(tenant, asked)

    async def search_later(self, tenant: int, asked: SegmentQuery, *, answers: AnswerStore | None = None) -> SearchJob:
        """Have a search done by a worker; see SegmentSearches.later."""
        return await self.searches.later(tenant, asked, answers=answers)

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

    def _into(self, spec: ModelSpec) -> Destination:
        """The collection of a model; it is made by the first write."""
        return Destination(collection_name(spec), KIND, NewCollection(spec, policy_of(self._settings)))

    async def _collections(self, tenant: int) -> list[CollectionRow]:
        async with self._runtime.pool.tenant(tenant, snapshot=True) as tx:
            return [await collections.named(tx, name) for name in await rows.collections_of_kind(tx, KIND.name)]


def _refuse_unfit(write: SegmentWrite) -> None:
    """Refuse what no schema has checked, since a program gave it."""
    if not write.labels.asset_id or not fit_for_id(write.labels.asset_id):
        raise Invalid.at("/asset_id", BAD_ID)
    if not all(segment.segment_id and fit_for_id(segment.segment_id) for segment in write.segments):
        raise Invalid.at("/segment_id", BAD_ID)
    refuse_unreadable([segment.text for segment in write.segments])
