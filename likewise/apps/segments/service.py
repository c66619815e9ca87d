"""SegmentsService: what the routes of document segments do, for routes and for programs alike."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar
from uuid import UUID, uuid4

import orjson

from likewise import filters
from likewise.apps.fields import MAX_LIMIT
from likewise.apps.segments import results, rows
from likewise.apps.segments.documents import NewSegment, parts_of, segments_of
from likewise.apps.segments.kind import KIND, collection_name, policy_of
from likewise.apps.segments.writing import Labels, SegmentWrite
from likewise.cleaning import cleaned, fit_for_id
from likewise.db import collections
from likewise.db.collections import CollectionRow
from likewise.db.pool import retried
from likewise.embedding.models import MOCK, ModelSpec
from likewise.embedding.provider import refuse_unreadable
from likewise.errors import Invalid, ModelNotAllowed, ModelUnavailable, NotFound
from likewise.filters import All, Compare, Field, Filter
from likewise.ingest.batch import BAD_ID, refuse_repeats
from likewise.ingest.tasks import Progress
from likewise.ingest.unit_of_work import AnswerStore, UnitOfWork
from likewise.ingest.writer import Destination, NewCollection
from likewise.kind import Policy
from likewise.runtime import Runtime
from likewise.search.hits import RecordHit
from likewise.search.options import Mode, SearchOptions, SearchRequest, TextQuestion
from likewise.search.plan import group_field

# The kind of task that is a search.
SEARCH = "segments_search"
# Of a job that has just been made.
PENDING = "PENDING"

A = TypeVar("A", results.EmbedAnswer, results.EmbedBatchAnswer, results.DocumentAnswer)


@dataclass(frozen=True)
class SegmentQuery(SearchOptions):
    """A question to the segments of one model; `asset_id` and `segment_id` hold beside the filters."""

    query_text: str
    asset_id: str | None = None
    segment_id: str | None = None
    model: str | None = None
    mode: Mode = field(default="dense", kw_only=True)


class SegmentsService:
    """Document segments of many tenants: stored, embedded by jobs, searched, deleted."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._settings = runtime.settings
        self._names = rows.TenantNames(runtime.pool)

    def known(self, model: str | None) -> ModelSpec:
        """The model of that name; Invalid if the settings do not allow it."""
        if model == MOCK.name and self._settings.enable_mock:
            return MOCK
        return self._runtime.embedder.known(model)

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
    ) -> results.EmbedAnswer:
        """Store a segment, and have it embedded unless it holds this text already.

        Raises:
            Invalid: an id, text or metadata that cannot be stored, or a model that the settings do not allow.
            Overloaded, TooManyRequests: as many texts wait as may.
        """
        segments = [NewSegment(segment_id, text, metadata or {})]
        write = await self._prepared(tenant, asset_id, segments, model, model_ver, about_one=True)
        answer = results.EmbedAnswer(write.job, asset_id, segment_id, write.labels.point_id(segment_id), PENDING)
        return await self._store(tenant, write, answer, answers)

    async def embed_batch(
        self,
        tenant: int,
        asset_id: str,
        batch: Sequence[NewSegment],
        *,
        model: str | None = None,
        model_ver: str | None = None,
        answers: AnswerStore | None = None,
    ) -> results.EmbedBatchAnswer:
        """Store segments of an asset, all or none, with one job for all of them; errors as `embed`."""
        message = "An earlier segment of this batch has the same id."
        refuse_repeats([one.segment_id for one in batch], "/segments/{}/segment_id", message)
        write = await self._prepared(tenant, asset_id, batch, model, model_ver)
        return await self._store(
            tenant, write, results.EmbedBatchAnswer(write.job, asset_id, len(batch), PENDING), answers
        )

    async def split(
        self, text: str, model: str | None = None, *, max_tokens: int | None = None, overlap: int | None = None
    ) -> list[results.PartAnswer]:
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
        parts: Sequence[results.PartAnswer] | None = None,
        *,
        model: str | None = None,
        model_ver: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        overlap: int | None = None,
        answers: AnswerStore | None = None,
    ) -> results.DocumentAnswer:
        """Split a text into the segments `chunk_0`, `chunk_1`, ... and store them; errors as `embed`.

        Of the asset's other segments those named `chunk_N` are removed in the same transaction.

        Args:
            parts: as `split` finds them, which is done here if they are absent.

        Raises:
            ModelUnavailable: nobody can say what the model reads at a time.
        """
        if parts is None:
            parts = await self.split(text, model, max_tokens=max_tokens, overlap=overlap)
        segments = segments_of(text, parts, metadata or {})
        write = await self._prepared(tenant, asset_id, segments, model, model_ver, is_document=True)
        answer = results.DocumentAnswer(write.job, asset_id, len(parts), PENDING, parts)
        return await self._store(tenant, write, answer, answers)

    async def search(self, tenant: int, asked: SegmentQuery) -> results.SegmentSearchAnswer:
        """The segments that fit best; none where none have been stored.

        Raises:
            Invalid: a model that is not allowed, a wrong filter, or words or texts asked for where none are kept.
            ModelUnavailable: the model is away.
        """
        spec, hits = await self._look(tenant, asked)
        org = await self._names.of(tenant)
        found = [results.segment_hit(one.record, one.score, one.similarity, org) for one in hits]
        return results.SegmentSearchAnswer(found, spec.hub_id, self._settings.model_ver, len(found))

    async def search_later(
        self, tenant: int, asked: SegmentQuery, *, answers: AnswerStore | None = None
    ) -> results.SearchJobAnswer:
        """Have a search done by a worker; the job's result is what `search` answers. The query waits sealed.

        Raises:
            Invalid: a query that `search` would refuse as things are.
            NoReranker: a reranker is asked for, and the settings name none.
            TooManyRequests: as many tasks of this tenant have not ended as may.
        """
        spec = self._refuse_query(asked)
        _refuse_unkept(asked, await self._policy(tenant, collection_name(spec)))
        if asked.rerank:
            self._runtime.reranking.known()
        answer = results.SearchJobAnswer(uuid4(), PENDING)
        # By its name: who does it may have another default.
        waiting = orjson.dumps(asdict(replace(asked, model=spec.name)))

        async def once() -> None:
            async with self._runtime.pool.tenant(tenant) as tx:
                await self._runtime.tasks.add(tx, answer.job_id, SEARCH, waiting)
                if answers is not None:
                    await answers.save(tx, answer)

        await retried(once)
        return answer

    async def run_search(self, tenant: int, input: bytes | None, progress: Progress) -> Mapping[str, Any]:
        """Do a search that `search_later` put off; a Handler of tasks. `rehydrate` tells what it found."""
        asked = SegmentQuery(**orjson.loads(input or b"{}"))
        try:
            spec, hits = await self._look(tenant, asked)
        except ModelNotAllowed:
            # It was where the search was asked for: another process may have it.
            raise ModelUnavailable("This process does not have the model.", code="model_not_here") from None
        return results.search_in_job(collection_name(spec), hits, spec.hub_id, self._settings.model_ver)

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

    async def _collections(self, tenant: int) -> list[CollectionRow]:
        async with self._runtime.pool.tenant(tenant, snapshot=True) as tx:
            return [await collections.named(tx, name) for name in await rows.collections_of_kind(tx, KIND.name)]

    async def _prepared(
        self,
        tenant: int,
        asset_id: str,
        segments: Sequence[NewSegment],
        model: str | None,
        model_ver: str | None,
        *,
        about_one: bool = False,
        is_document: bool = False,
    ) -> SegmentWrite:
        spec = self.known(model)
        labels = Labels(await self._names.of(tenant), asset_id, spec, model_ver or self._settings.model_ver)
        write = SegmentWrite(labels, segments, about_one, is_document)
        _refuse_unfit(write)
        return write

    async def _store(self, tenant: int, write: SegmentWrite, answer: A, answers: AnswerStore | None) -> A:
        """Store segments and return the answer with the job that they have; the first write makes the collection."""
        spec = write.labels.spec
        into = Destination(collection_name(spec), KIND, NewCollection(spec, policy_of(self._settings)))

        async def once(unit: UnitOfWork) -> A:
            job, state = await write.store(unit)
            accepted = replace(answer, job_id=job, status=state)
            await unit.save(accepted)
            return accepted

        return await self._runtime.writer.transaction(tenant, into, write.records, once, answers=answers)

    async def _look(self, tenant: int, asked: SegmentQuery) -> tuple[ModelSpec, Sequence[RecordHit]]:
        """The model that is asked, and the records that fit best; none where none have been stored."""
        spec = self._refuse_query(asked)
        name = collection_name(spec)
        _refuse_unkept(asked, await self._policy(tenant, name))
        request = SearchRequest(TextQuestion(cleaned(asked.query_text)), asked, must=_named(asked))
        try:
            return spec, (await self._runtime.searcher.search(tenant, name, request)).records
        except NotFound:
            # A search makes no collection.
            return spec, ()
        except Invalid as error:
            raise error.moved("/query", "/query_text") from None

    async def _policy(self, tenant: int, name: str) -> Policy:
        """The policy of a collection, or of the one that a first write would make."""
        try:
            return (await self._runtime.recent.get(tenant, name)).policy
        except NotFound:
            return policy_of(self._settings)

    def _refuse_query(self, asked: SegmentQuery) -> ModelSpec:
        """The model that is asked for; Invalid for what no collection could answer."""
        try:
            refuse_unreadable([asked.query_text])
        except Invalid as error:
            raise Invalid.at("/query_text", error.detail, error.faults[0].code) from None
        if not 1 <= asked.limit <= MAX_LIMIT:
            raise Invalid.at("/limit", f"This is 1 to {MAX_LIMIT}.", "out_of_range")
        if asked.threshold is not None and not -1 <= asked.threshold <= 1:
            raise Invalid.at("/threshold", "A threshold is a cosine, -1 to 1.", "out_of_range")
        filters.parse(asked.filters, KIND.aliases, KIND.within)
        group_field(asked.group_by, KIND.aliases, KIND.within)
        return self.known(asked.model)


def _refuse_unfit(write: SegmentWrite) -> None:
    """Refuse what no schema has checked, since a program gave it."""
    if not write.labels.asset_id or not fit_for_id(write.labels.asset_id):
        raise Invalid.at("/asset_id", BAD_ID)
    if not all(segment.segment_id and fit_for_id(segment.segment_id) for segment in write.segments):
        raise Invalid.at("/segment_id", BAD_ID)
    refuse_unreadable([segment.text for segment in write.segments])


def _refuse_unkept(asked: SegmentQuery, policy: Policy) -> None:
    if asked.mode != "dense" and not policy.keep_terms:
        message = "No words are kept of these segments (LIKEWISE_SEGMENTS_KEEP_TERMS); use mode dense."
        raise Invalid.at("/mode", message, "terms_not_kept")
    if asked.rerank and not policy.keep_text:
        message = "A reranker reads texts, and none are kept of these segments (LIKEWISE_SEGMENTS_KEEP_TEXT)."
        raise Invalid.at("/rerank", message, "rerank_needs_text")


def _named(asked: SegmentQuery) -> Filter | None:
    """The asset and the segment that are asked for."""
    fields = {Field("parent", column=True): asked.asset_id, Field("segment_id", column=False): asked.segment_id}
    wanted = [Compare(of, "$eq", cleaned(value)) for of, value in fields.items() if value is not None]
    return All(tuple(wanted)) if wanted else None
