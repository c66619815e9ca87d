"""SegmentsService: what the routes of document segments do, for routes and for programs alike."""

import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from typing import Any, Generic, TypeVar
from uuid import UUID, uuid4

import orjson

from likewise import filters
from likewise.apps.collections.service import Save
from likewise.apps.segments.documents import NewSegment, Part, parts_of, segments_of
from likewise.apps.segments.points import point_id
from likewise.apps.segments.writing import Labels, Storing
from likewise.cleaning import cleaned, fit_for_id
from likewise.db import collections, segments
from likewise.db.collections import Collection
from likewise.db.failures import CollectionGone
from likewise.db.pool import retried
from likewise.db.transaction import Tx
from likewise.embedding.models import MOCK, ModelSpec
from likewise.embedding.texts import refuse_unreadable
from likewise.errors import Conflict, Fault, Invalid, NotFound
from likewise.filters import All, Compare, Field, Filter
from likewise.ingest.tasks import Progress
from likewise.ingest.writer import BAD_ID
from likewise.kind import Kind, Policy
from likewise.runtime import Runtime
from likewise.search.analyzer import ANALYZER
from likewise.search.grouping import group_field
from likewise.search.request import Found, Mode, SearchRequest

T = TypeVar("T")
# Waits for the parts of a document.
Splitting = Callable[[Coroutine[Any, Any, list[Part]]], Awaitable[list[Part]]]

# The kind of task that is a search.
SEARCH = "segments_search"
METADATA = "metadata"
KIND = Kind(
    name="segments",
    text=lambda record: record.text or "",
    indexed=("point_id", "segment_id"),
    aliases={"asset_id": "parent", "id": "point_id"},
    within=METADATA,
)
# What is kept of a segment beside its metadata, and answered.
OWN = ("segment_id", "modality", "model", "model_ver", "job_id")
# Names that a collection's may end with; those of models may be folders.
_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True)
class Accepted:
    """A segment that is stored, and the job that says when it can be found."""

    job_id: UUID
    asset_id: str
    segment_id: str
    point_id: str
    status: str


@dataclass(frozen=True)
class AcceptedBatch:
    """So many segments of an asset that are stored, and the one job that says when they can be found."""

    job_id: UUID
    asset_id: str
    total: int
    status: str


@dataclass(frozen=True)
class AcceptedDocument(AcceptedBatch):
    """The same, with where each segment lies in the document."""

    segments: Sequence[Part] = ()


@dataclass(frozen=True)
class SegmentQuery:
    """What is asked of the segments of one model; `asset_id` and `segment_id` hold beside the filters."""

    query_text: str
    limit: int = 10
    asset_id: str | None = None
    segment_id: str | None = None
    model: str | None = None
    filters: Mapping[str, Any] | None = None
    mode: Mode = "dense"
    rerank: bool = False
    threshold: float | None = None
    group_by: str | None = None


@dataclass(frozen=True)
class SegmentHit:
    """One segment that was found. `score` is the cosine in mode dense, and orders the hits of any other."""

    point_id: str
    score: float
    payload: dict[str, Any]
    similarity: float | None


@dataclass(frozen=True)
class SegmentsFound:
    """Segments, best first, and the model that made the query's vector; `total` counts the results."""

    results: list[SegmentHit] = field(default_factory=list)
    query_model: str = ""
    query_model_ver: str = ""
    total: int = 0


@dataclass(frozen=True)
class SearchJob:
    """The job whose result is what a search answers."""

    job_id: UUID
    status: str


class SegmentsService:
    """Document segments of many tenants: stored, embedded by jobs, searched, deleted."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._settings = runtime.settings
        self._names: dict[int, str] = {}

    def known(self, model: str | None) -> ModelSpec:
        """The model of that name, whose segments may be searched; Invalid if the settings do not allow it."""
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
        save: Save | None = None,
    ) -> Accepted:
        """Store a segment, and have it embedded unless it holds this text already.

        Raises:
            Invalid: an id, text or metadata that cannot be stored, or a model that the settings do not allow.
            Overloaded, TooManyRequests: as many texts wait as may.
        """
        segment = NewSegment(segment_id, text, metadata or {})
        labels, spec = await self._labels(tenant, asset_id, model, model_ver), self.known(model)
        point = point_id(labels.tenant, asset_id, segment_id, labels.model, labels.model_ver)

        def told(job: UUID, state: str) -> Accepted:
            return Accepted(job, asset_id, segment_id, point, state)

        answer = _Answer(told, save)
        await self._store(tenant, spec, Storing(labels, [segment], answer.stored, one=True))
        return answer.known

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
        _refuse_repeats(batch)
        labels, spec = await self._labels(tenant, asset_id, model, model_ver), self.known(model)

        def told(job: UUID, state: str) -> AcceptedBatch:
            return AcceptedBatch(job, asset_id, len(batch), state)

        answer = _Answer(told, save)
        await self._store(tenant, spec, Storing(labels, batch, answer.stored))
        return answer.known

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
        labels, spec = await self._labels(tenant, asset_id, model, model_ver), self.known(model)
        finding = parts_of(self._runtime.embedder, text, spec.name, max_tokens=max_tokens, overlap=overlap)
        parts = await (finding if splitting is None else splitting(finding))

        def told(job: UUID, state: str) -> AcceptedDocument:
            return AcceptedDocument(job, asset_id, len(parts), state, parts)

        answer = _Answer(told, save)
        batch = segments_of(text, parts, metadata or {})
        await self._store(tenant, spec, Storing(labels, batch, answer.stored), whole=True)
        return answer.known

    async def search(self, tenant: int, asked: SegmentQuery) -> SegmentsFound:
        """The segments that fit best; none where none have been stored.

        Raises:
            Invalid: a model that is not allowed, a wrong filter, or words or texts asked for where none are kept.
            ModelUnavailable: the model is away.
        """
        spec = self._refuse_query(asked)
        none = SegmentsFound([], spec.hub_id, self._settings.model_ver)
        name = collection_name(spec)
        try:
            policy = (await self._runtime.recent.get(tenant, name)).policy
            _refuse_unkept(asked, policy)
            found = await self._runtime.searcher.search(tenant, name, KIND, _request(asked))
        except NotFound:
            # A search makes no collection; who asks first hears what everybody hears.
            _refuse_unkept(asked, self._policy)
            return none
        except Invalid as error:
            _point_at_query_text(error)
            raise
        org = await self._tenant_name(tenant)
        results = [_hit(one, org) for one in found.hits]
        return replace(none, results=results, total=len(results))

    async def search_later(self, tenant: int, asked: SegmentQuery, *, save: Save | None = None) -> SearchJob:
        """Have a search done by a worker; the job's result is what `search` answers. The query waits sealed.

        Raises:
            Invalid: a query that `search` would refuse whatever is stored.
            TooManyRequests: as many tasks of this tenant have not ended as may.
        """
        self._refuse_query(asked)
        answer = SearchJob(uuid4(), "PENDING")

        async def once() -> None:
            async with self._runtime.pool.tenant(tenant) as tx:
                await self._runtime.tasks.add(tx, answer.job_id, SEARCH, orjson.dumps(asdict(asked)))
                if save is not None:
                    await save(tx, answer)

        await retried(once)
        return answer

    async def search_task(self, tenant: int, input: bytes | None, progress: Progress) -> Mapping[str, Any]:
        """Do a search that `search_later` put off; a Handler of tasks."""
        found = await self.search(tenant, SegmentQuery(**orjson.loads(input or b"{}")))
        return asdict(found)

    async def delete_point(self, tenant: int, point: UUID) -> None:
        """Remove a segment; NotFound if there is none with this id."""
        gone = 0
        for collection in await self._collections(tenant):
            async with self._runtime.pool.tenant(tenant, snapshot=True) as tx:
                found = await segments.with_point(tx, collection.id, str(point))
            for one in found:
                gone += await self._runtime.writer.delete(tenant, collection, one)
        if not gone:
            raise NotFound("There is no segment of this id.", code="point_not_found")

    async def delete_asset(self, tenant: int, asset_id: str) -> None:
        """Remove all segments of an asset, of every model; NotFound if there are none."""
        gone = 0
        for collection in await self._collections(tenant):
            gone += await self._runtime.writer.delete_parent(tenant, collection, asset_id)
        if not gone:
            raise NotFound("There is no asset of this id.", code="asset_not_found")

    def _refuse_query(self, asked: SegmentQuery) -> ModelSpec:
        """The model that is asked for; Invalid for what no collection could answer."""
        try:
            refuse_unreadable([asked.query_text])
        except Invalid as error:
            raise Invalid.at("/query_text", error.detail, error.faults[0].code) from None
        filters.parse(asked.filters, KIND.aliases, KIND.within)
        group_field(asked.group_by, KIND.aliases, KIND.within)
        return self.known(asked.model)

    @property
    def _policy(self) -> Policy:
        """That of collections made from now on."""
        return Policy(keep_text=self._settings.segments_keep_text, keep_terms=self._settings.segments_keep_terms)

    async def _labels(self, tenant: int, asset_id: str, model: str | None, model_ver: str | None) -> Labels:
        hub_id = self.known(model).hub_id
        return Labels(await self._tenant_name(tenant), asset_id, hub_id, model_ver or self._settings.model_ver)

    async def _tenant_name(self, tenant: int) -> str:
        if tenant not in self._names:
            async with self._runtime.pool.tenant(tenant, snapshot=True) as tx:
                self._names[tenant] = await segments.tenant_name(tx)
        return self._names[tenant]

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

    async def _made(self, tenant: int, name: str, spec: ModelSpec) -> Collection:
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
                policy=self._policy,
                model=spec.name,
                dimension=await self._runtime.embedder.dimension(spec),
                text_keys=self._runtime.text_keys,
            )
        except Conflict as error:
            # Another made it meanwhile.
            if error.code != "collection_exists":
                raise
        return await recent.get(tenant, name)

    async def _collections(self, tenant: int) -> list[Collection]:
        async with self._runtime.pool.tenant(tenant, snapshot=True) as tx:
            return [await collections.named(tx, name) for name in await segments.collections_of_kind(tx, KIND.name)]


class _Answer(Generic[T]):
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


def collection_name(spec: ModelSpec) -> str:
    """The collection of a model's segments. A folder's path, which no address has room for, is told by its digest."""
    if _NAME.fullmatch(spec.name):
        return f"{KIND.name}:{spec.name}"
    return f"{KIND.name}:{sha256(spec.name.encode()).hexdigest()[:32]}"


def _refuse_repeats(batch: Sequence[NewSegment]) -> None:
    """Which of two texts of one segment counts would be a guess."""
    message = "An earlier segment of this batch has the same id."
    seen: set[str] = set()
    faults = []
    for place, segment in enumerate(batch):
        if segment.segment_id in seen:
            faults.append(Fault(f"/segments/{place}/segment_id", "duplicate_id", message))
        seen.add(segment.segment_id)
    if faults:
        raise Invalid(message, faults=faults)


def _refuse_unfit(asset_id: str, batch: Sequence[NewSegment]) -> None:
    """What a program gives is not checked by a schema."""
    if not asset_id or not fit_for_id(asset_id):
        raise Invalid.at("/asset_id", BAD_ID)
    if not all(segment.segment_id and fit_for_id(segment.segment_id) for segment in batch):
        raise Invalid.at("/segment_id", BAD_ID)
    refuse_unreadable([segment.text for segment in batch])


def _refuse_unkept(asked: SegmentQuery, policy: Policy) -> None:
    if asked.mode != "dense" and not policy.keep_terms:
        message = "No words are kept of these segments (LIKEWISE_SEGMENTS_KEEP_TERMS); use mode dense."
        raise Invalid.at("/mode", message, "terms_not_kept")
    if asked.rerank and not policy.keep_text:
        message = "A reranker reads texts, and none are kept of these segments (LIKEWISE_SEGMENTS_KEEP_TEXT)."
        raise Invalid.at("/rerank", message, "rerank_needs_text")


def _request(asked: SegmentQuery) -> SearchRequest:
    return SearchRequest(
        query=cleaned(asked.query_text),
        limit=asked.limit,
        filters=asked.filters,
        mode=asked.mode,
        threshold=asked.threshold,
        group_by=asked.group_by,
        rerank=asked.rerank,
        must=_named(asked),
    )


def _named(asked: SegmentQuery) -> Filter | None:
    """The asset and the segment that are asked for."""
    fields = {Field("parent", column=True): asked.asset_id, Field("segment_id", column=False): asked.segment_id}
    wanted = [Compare(of, "$eq", cleaned(value)) for of, value in fields.items() if value is not None]
    return All(tuple(wanted)) if wanted else None


def _point_at_query_text(error: Invalid) -> None:
    faults = [replace(one, pointer="/query_text") if one.pointer == "/query" else one for one in error.faults]
    error.faults = tuple(faults)


def _hit(one: Found, org: str) -> SegmentHit:
    """A hit with what its vector's row says of the text; a record that waits has nothing there."""
    record = one.record
    own = {name: record.payload.get(name) for name in OWN}
    metadata = record.payload.get(METADATA) or {}
    payload = {
        **metadata,
        "org_id": org,
        "asset_id": record.parent,
        **own,
        "text_len": record.chars,
        "truncated_len": record.chars_read,
        "tokens": record.tokens,
        METADATA: metadata,
    }
    return SegmentHit(record.payload["point_id"], one.score, payload, one.similarity)
