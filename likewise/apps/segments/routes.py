"""The routes of document segments, `/vectors`."""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Response
from pydantic import BeforeValidator, Field
from pydantic.json_schema import SkipJsonSchema

from likewise.apps.answers import BODY_REFUSALS, Answer, refusals
from likewise.apps.body import PARSED, parsed
from likewise.apps.checking import OldRequest, wrong
from likewise.apps.collections.schemas import SearchFields
from likewise.apps.declaration import Body, Load, declares
from likewise.apps.deps import CanRead, CanWrite, Metered, ServiceOf, runtime_of
from likewise.apps.fields import AS_WHOLE_NUMBER, MAX_ID, MAX_ITEMS, MAX_LIMIT, WHOLE, CheckedPayload, Label, Text
from likewise.apps.idempotency import Once, Reply
from likewise.apps.segments import results
from likewise.apps.segments.documents import MIN_TOKENS, NewSegment
from likewise.apps.segments.service import SegmentQuery, SegmentsService
from likewise.embedding.models import MOCK
from likewise.errors import NotFound
from likewise.search.options import Mode

_MODEL = "One that `GET /embed/models` lists; the default if absent."
_MODEL_VER = "The caller's name for the model's version; LIKEWISE_MODEL_VER if absent."

Model = Annotated[str | None, Field(description=_MODEL)]
ModelVer = Annotated[Label | None, Field(description=_MODEL_VER)]
# As everywhere on these routes, null is the same as absent.
Metadata = Annotated[CheckedPayload | None, Field(description="What filters find, and hits give back.")]


class SegmentIn(OldRequest):
    """One segment of an asset."""

    segment_id: Label
    text: Text
    metadata: Metadata = None

    def to_segment(self) -> NewSegment:
        """The segment for the service."""
        return NewSegment(self.segment_id, self.text, self.metadata or {})


class SegmentEmbedIn(SegmentIn):
    """A segment to store and embed."""

    asset_id: Label
    model: Model = None
    model_ver: ModelVer = None


class SegmentBatchIn(OldRequest):
    """Segments of one asset to store and embed, all or none."""

    asset_id: Label
    segments: list[SegmentIn] = Field(min_length=1, max_length=MAX_ITEMS)
    model: Model = None
    model_ver: ModelVer = None


class SegmentDocumentIn(OldRequest):
    """A text to split into segments."""

    asset_id: Label
    text: Text
    metadata: Metadata = None
    model: Model = None
    model_ver: ModelVer = None
    max_tokens: Annotated[int, Field(ge=MIN_TOKENS), AS_WHOLE_NUMBER] | None = Field(
        None, description="Of a segment; what the model reads if absent, and at most that."
    )
    overlap: Annotated[int, Field(ge=0), AS_WHOLE_NUMBER] | None = Field(
        None,
        description="Tokens at most that a segment shares with the one before; an eighth of max_tokens if absent.",
    )


def _called(name: str) -> BeforeValidator:
    def refuse(value: object) -> object:
        if value is not None:
            raise wrong("unknown_field", f"This request has no such field: send {name}.")
        return value

    return BeforeValidator(refuse)


# Fields that other systems have: a search that ignored them would find what was not asked for.
CalledFilters = Annotated[SkipJsonSchema[None], _called("filters")]
CalledLimit = Annotated[SkipJsonSchema[None], _called("limit")]


class SegmentSearchIn(SearchFields, OldRequest):
    """A search among the segments of one model."""

    query_text: Text
    filter: CalledFilters = None
    where: CalledFilters = None
    top_k: CalledLimit = None
    k: CalledLimit = None
    n_results: CalledLimit = None
    asset_id: Label | None = None
    segment_id: Label | None = None
    model: Model = None
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT), AS_WHOLE_NUMBER] | None = 10  # type: ignore[assignment]
    mode: Mode | None = "dense"  # type: ignore[assignment]

    def to_query(self) -> SegmentQuery:
        """Return the question for the service."""
        return SegmentQuery(self.query_text, self.asset_id, self.segment_id, self.model, **self.options())


F = TypeVar("F", bound=Callable[..., Any])

router = APIRouter(prefix="/vectors", tags=["segments"])

Segments = Annotated[SegmentsService, Depends(ServiceOf(SegmentsService))]

PointId = Annotated[UUID, Path(description="A segment's point_id.")]
AssetId = Annotated[
    str, Path(json_schema_extra={"minLength": 1, "maxLength": MAX_ID, "pattern": WHOLE}, description="An asset's id.")
]


def storing(path: str, answer: type[Any]) -> Callable[[F], F]:
    """Return the decorator of a route that stores; which of two answers it is follows from what is stored already."""
    done = {"model": answer, "description": "Nothing is left to do: the job has succeeded."}
    responses = {200: done, **refusals(*BODY_REFUSALS, 409, 429)}
    return router.post(path, status_code=202, response_model=answer, responses=responses)


@storing("/embed", results.EmbedAnswer)
@declares(Load.WRITE, Body(SegmentEmbedIn))
async def embed_segment(
    tenant: CanWrite, service: Segments, once: Once, metered: Metered, body: Annotated[SegmentEmbedIn, PARSED]
) -> Response:
    """Store a segment and have it embedded. With the text that it holds already, the job that stored it answers."""
    async with once.begin(tenant, 202, ended=200) as reply:
        if reply.earlier:
            return reply.earlier
        metered.spend_on(tenant, [body.text], body.model)
        return await _store(tenant, service, body, body.model, reply)


@storing("/embed/batch", results.EmbedBatchAnswer)
@declares(Load.WRITE, Body(SegmentBatchIn))
async def embed_segments(
    tenant: CanWrite, service: Segments, once: Once, metered: Metered, body: Annotated[SegmentBatchIn, PARSED]
) -> Response:
    """Store segments of an asset, all or none, with one job for all of them."""
    batch = [one.to_segment() for one in body.segments]
    async with once.begin(tenant, 202, ended=200) as reply:
        if reply.earlier:
            return reply.earlier
        metered.spend_on(tenant, [one.text for one in batch], body.model)
        stored = await service.embed_batch(
            tenant, body.asset_id, batch, model=body.model, model_ver=body.model_ver, answers=reply.answers
        )
        return await reply.give(stored)


@storing("/documents", results.DocumentAnswer)
@declares(Load.SPLITTING, Body(SegmentDocumentIn))
async def embed_document(
    tenant: CanWrite, service: Segments, once: Once, metered: Metered, body: Annotated[SegmentDocumentIn, PARSED]
) -> Response:
    """Split a text into segments and store these, `chunk_0`, `chunk_1` and so on; those of a longer text before go."""
    async with once.begin(tenant, 202, ended=200) as reply:
        if reply.earlier:
            return reply.earlier
        metered.spend_on(tenant, [body.text], body.model)
        splitting = service.split(body.text, body.model, max_tokens=body.max_tokens, overlap=body.overlap)
        stored = await service.embed_document(
            tenant,
            body.asset_id,
            body.text,
            await metered.attended(splitting),
            model=body.model,
            model_ver=body.model_ver,
            metadata=body.metadata,
            answers=reply.answers,
        )
        return await reply.give(stored)


@router.post("/search", response_model=results.SegmentSearchAnswer, responses=refusals(*BODY_REFUSALS, 429))
@declares(Load.OTHER, Body(SegmentSearchIn, references={"filters": "Filter"}))
async def search_segments(
    tenant: CanRead, service: Segments, metered: Metered, body: Annotated[SegmentSearchIn, PARSED]
) -> Answer:
    """The segments nearest to a query; none, where none have been stored."""
    service.known(body.model)
    metered.quotas.spend(tenant, [body.query_text])
    return Answer(await metered.search(service.search(tenant, body.to_query()), rerank=body.rerank))


@router.post(
    "/search/async",
    status_code=202,
    response_model=results.SearchJobAnswer,
    responses=refusals(*BODY_REFUSALS, 409, 429),
)
@declares(Load.OTHER, Body(SegmentSearchIn, references={"filters": "Filter"}))
async def search_segments_later(
    tenant: CanRead, service: Segments, once: Once, metered: Metered, body: Annotated[SegmentSearchIn, PARSED]
) -> Response:
    """Search as a job, whose result is the answer of the search."""
    async with once.begin(tenant, 202) as reply:
        if reply.earlier:
            return reply.earlier
        service.known(body.model)
        metered.quotas.spend(tenant, [body.query_text])
        return await reply.give(await service.search_later(tenant, body.to_query(), answers=reply.answers))


@router.post("/mock", status_code=202, include_in_schema=False)
@declares(Load.WRITE, Body(SegmentEmbedIn))
async def embed_made_up(tenant: CanWrite, service: Segments, once: Once, metered: Metered) -> Response:
    """Embed a segment with a made-up vector, where LIKEWISE_ENABLE_MOCK allows it."""
    if not runtime_of(metered.request).settings.enable_mock:
        raise NotFound
    body = await parsed(metered.request)
    async with once.begin(tenant, 202, ended=200) as reply:
        if reply.earlier:
            return reply.earlier
        metered.quotas.spend(tenant, [body.text])
        return await _store(tenant, service, body, service.known(MOCK.name).name, reply)


@router.delete("/asset/{asset_id:path}", status_code=204, responses=refusals(400, 404))
@declares(Load.OTHER)
async def delete_asset(tenant: CanWrite, service: Segments, asset_id: AssetId) -> Response:
    """Delete all segments of an asset; they are gone from every table before the answer. Its id may hold `/`."""
    await service.delete_asset(tenant, asset_id)
    return Response(status_code=204)


@router.delete("/{point_id:uuid}", status_code=204, responses=refusals(400, 404))
@declares(Load.OTHER)
async def delete_segment(tenant: CanWrite, service: Segments, point_id: PointId) -> Response:
    """Delete a segment; it is gone from every table before the answer."""
    await service.delete_point(tenant, point_id)
    return Response(status_code=204)


async def _store(
    tenant: int, service: SegmentsService, body: SegmentEmbedIn, model: str | None, reply: Reply
) -> Response:
    stored = await service.embed(
        tenant,
        body.asset_id,
        body.segment_id,
        body.text,
        model=model,
        model_ver=body.model_ver,
        metadata=body.metadata,
        answers=reply.answers,
    )
    return await reply.give(stored)
