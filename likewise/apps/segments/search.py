"""Searches of segments: at once, or as a task."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from uuid import UUID, uuid4

import orjson

from likewise import filters
from likewise.apps.fields import MAX_LIMIT
from likewise.apps.segments.hits import SegmentSearchOutcome, SegmentSearchResult
from likewise.apps.segments.kind import KIND, collection_name, policy_of
from likewise.apps.segments.naming import TenantNames
from likewise.cleaning import cleaned
from likewise.db.pool import retried
from likewise.embedding.models import MOCK, ModelSpec
from likewise.embedding.provider import refuse_unreadable
from likewise.errors import Invalid, ModelNotAllowed, ModelUnavailable, NotFound
from likewise.filters import All, Compare, Field, Filter
from likewise.ingest.tasks import Progress
from likewise.ingest.unit_of_work import AnswerStore
from likewise.kind import Policy
from likewise.runtime import Runtime
from likewise.search.options import Mode, SearchOptions, SearchRequest, TextQuestion
from likewise.search.plan import group_field

# The kind of task that is a search.
SEARCH = "segments_search"


@dataclass(frozen=True)
class SegmentQuery(SearchOptions):
    """A question to the segments of one model; `asset_id` and `segment_id` hold beside the filters."""

    query_text: str
    asset_id: str | None = None
    segment_id: str | None = None
    model: str | None = None
    mode: Mode = field(default="dense", kw_only=True)


@dataclass(frozen=True)
class SearchJob:
    """The job whose result is what a search answers."""

    job_id: UUID
    status: str


class SegmentSearches:
    """Searches the segments of one model."""

    def __init__(self, runtime: Runtime, names: TenantNames) -> None:
        self._runtime = runtime
        self._settings = runtime.settings
        self._names = names

    def known(self, model: str | None) -> ModelSpec:
        """The model of that name, whose segments may be searched; Invalid if the settings do not allow it."""
        if model == MOCK.name and self._settings.enable_mock:
            return MOCK
        return self._runtime.embedder.known(model)

    async def search(self, tenant: int, asked: SegmentQuery) -> SegmentSearchResult:
        """The segments that fit best; none where none have been stored.

        Raises:
            Invalid: a model that is not allowed, a wrong filter, or words or texts asked for where none are kept.
            ModelUnavailable: the model is away.
        """
        outcome = await self._look(tenant, asked)
        return outcome.to_result(await self._names.of(tenant))

    async def later(self, tenant: int, asked: SegmentQuery, *, answers: AnswerStore | None = None) -> SearchJob:
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
        answer = SearchJob(uuid4(), "PENDING")
        # By its name: who does it may have another default.
        waiting = orjson.dumps(asdict(replace(asked, model=spec.name)))

        async def once() -> None:
            async with self._runtime.pool.tenant(tenant) as tx:
                await self._runtime.tasks.add(tx, answer.job_id, SEARCH, waiting)
                if answers is not None:
                    await answers.save(tx, answer)

        await retried(once)
        return answer

    async def task(self, tenant: int, input: bytes | None, progress: Progress) -> Mapping[str, Any]:
        """Do a search that `later` put off; a Handler of tasks. `rehydrate` tells what it found."""
        asked = SegmentQuery(**orjson.loads(input or b"{}"))
        try:
            outcome = await self._look(tenant, asked)
        except ModelNotAllowed:
            # It was where the search was asked for: another process may have it.
            raise ModelUnavailable("This process does not have the model.", code="model_not_here") from None
        return outcome.to_job()

    async def _look(self, tenant: int, asked: SegmentQuery) -> SegmentSearchOutcome:
        spec = self._refuse_query(asked)
        name = collection_name(spec)
        none = SegmentSearchOutcome(name, spec.hub_id, self._settings.model_ver)
        _refuse_unkept(asked, await self._policy(tenant, name))
        request = SearchRequest(TextQuestion(cleaned(asked.query_text)), asked, must=_named(asked))
        try:
            found = await self._runtime.searcher.search(tenant, name, request)
        except NotFound:
            # A search makes no collection.
            return none
        except Invalid as error:
            raise error.moved("/query", "/query_text") from None
        return replace(none, hits=found.records)

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
