"""The routes of document segments, `/vectors`."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import BaseModel

from likewise.apps.answers import Answer
from likewise.apps.body import PARSED, parsed
from likewise.apps.declaration import Body, Load, declares
from likewise.apps.deps import CanRead, CanWrite, ProcessEmbedder, ProcessQuotas, ServiceOf, services, while_connected
from likewise.apps.fields import MAX_ID, WHOLE
from likewise.apps.idempotency import Once, Reply
from likewise.apps.problems import BODY_REFUSALS, refusals
from likewise.apps.segments.accepted import Accepted
from likewise.apps.segments.schemas import (
    DocumentAnswer,
    EmbedAnswer,
    EmbedBatchAnswer,
    SearchJobAnswer,
    SegmentBatchIn,
    SegmentDocumentIn,
    SegmentEmbedIn,
    SegmentSearchAnswer,
    SegmentSearchIn,
)
from likewise.apps.segments.service import SegmentsService
from likewise.embedding.models import MOCK
from likewise.errors import NotFound

router = APIRouter(prefix="/vectors", tags=["segments"])

Segments = Annotated[SegmentsService, Depends(ServiceOf(SegmentsService))]

PointId = Annotated[UUID, Path(description="A segment's point_id.")]
AssetId = Annotated[
    str, Path(json_schema_extra={"minLength": 1, "maxLength": MAX_ID, "pattern": WHOLE}, description="An asset's id.")
]


def accepted(answer: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The documented answers of a route that stores: which of two it is follows from what is stored already."""
    done = {"model": answer, "description": "Nothing is left to do: the job has succeeded."}
    return {200: done, **refusals(*BODY_REFUSALS, 409, 429)}


@router.post(
    "/embed",
    status_code=202,
    response_model=EmbedAnswer,
    responses=accepted(EmbedAnswer),
)
@declares(Load.WRITE, Body(SegmentEmbedIn))
async def embed_segment(
    tenant: CanWrite,
    service: Segments,
    once: Once,
    quotas: ProcessQuotas,
    embedder: ProcessEmbedder,
    body: Annotated[SegmentEmbedIn, PARSED],
) -> Response:
    """Store a segment and have it embedded. With the text that it holds already, the job that stored it answers."""
    async with once.begin(tenant, 202, ended=200) as reply:
        if reply.is_new:
            embedder.known(body.model)
            quotas.spend(tenant, [body.text])
            await reply.give(await _store(tenant, service, body, body.model, reply))
    return reply.response


@router.post(
    "/embed/batch",
    status_code=202,
    response_model=EmbedBatchAnswer,
    responses=accepted(EmbedBatchAnswer),
)
@declares(Load.WRITE, Body(SegmentBatchIn))
async def embed_segments(
    tenant: CanWrite,
    service: Segments,
    once: Once,
    quotas: ProcessQuotas,
    embedder: ProcessEmbedder,
    body: Annotated[SegmentBatchIn, PARSED],
) -> Response:
    """Store segments of an asset, all or none, with one job for all of them."""
    batch = [one.to_segment() for one in body.segments]
    async with once.begin(tenant, 202, ended=200) as reply:
        if reply.is_new:
            embedder.known(body.model)
            quotas.spend(tenant, [one.text for one in batch])
            stored = await service.embed_batch(
                tenant, body.asset_id, batch, model=body.model, model_ver=body.model_ver, answers=reply.answers
            )
            await reply.give(stored)
    return reply.response


@router.post(
    "/documents",
    status_code=202,
    response_model=DocumentAnswer,
    responses=accepted(DocumentAnswer),
)
@declares(Load.SPLITTING, Body(SegmentDocumentIn))
async def embed_document(
    tenant: CanWrite,
    service: Segments,
    once: Once,
    quotas: ProcessQuotas,
    embedder: ProcessEmbedder,
    request: Request,
    body: Annotated[SegmentDocumentIn, PARSED],
) -> Response:
    """Split a text into segments and store these, `chunk_0`, `chunk_1` and so on; those of a longer text before go."""
    async with once.begin(tenant, 202, ended=200) as reply:
        if reply.is_new:
            embedder.known(body.model)
            quotas.spend(tenant, [body.text])
            splitting = service.split(body.text, body.model, max_tokens=body.max_tokens, overlap=body.overlap)
            stored = await service.embed_document(
                tenant,
                body.asset_id,
                body.text,
                await while_connected(request, splitting),
                model=body.model,
                model_ver=body.model_ver,
                metadata=body.metadata,
                answers=reply.answers,
            )
            await reply.give(stored)
    return reply.response


@router.post(
    "/search",
    response_model=SegmentSearchAnswer,
    responses=refusals(*BODY_REFUSALS, 429),
)
@declares(Load.OTHER, Body(SegmentSearchIn, references={"filters": "Filter"}))
async def search_segments(
    tenant: CanRead,
    service: Segments,
    quotas: ProcessQuotas,
    request: Request,
    body: Annotated[SegmentSearchIn, PARSED],
) -> Answer:
    """The segments nearest to a query; none, where none have been stored."""
    service.known(body.model)
    quotas.spend(tenant, [body.query_text])
    searching = service.search(tenant, body.to_query())
    # A reranker's work is long enough that nobody may leave it behind.
    return Answer(await (while_connected(request, searching) if body.rerank else searching))


@router.post(
    "/search/async",
    status_code=202,
    response_model=SearchJobAnswer,
    responses=refusals(*BODY_REFUSALS, 409, 429),
)
@declares(Load.OTHER, Body(SegmentSearchIn, references={"filters": "Filter"}))
async def search_segments_later(
    tenant: CanRead,
    service: Segments,
    once: Once,
    quotas: ProcessQuotas,
    body: Annotated[SegmentSearchIn, PARSED],
) -> Response:
    """Search as a job, whose result is the answer of the search."""
    async with once.begin(tenant, 202) as reply:
        if reply.is_new:
            service.known(body.model)
            quotas.spend(tenant, [body.query_text])
            await reply.give(await service.search_later(tenant, body.to_query(), answers=reply.answers))
    return reply.response


@router.post("/mock", status_code=202, include_in_schema=False)
@declares(Load.WRITE, Body(SegmentEmbedIn))
async def embed_made_up(
    tenant: CanWrite, service: Segments, once: Once, quotas: ProcessQuotas, request: Request
) -> Response:
    """Embed a segment with a made-up vector, where LIKEWISE_ENABLE_MOCK allows it."""
    if not services(request).runtime.settings.enable_mock:
        raise NotFound
    body = await parsed(request)
    async with once.begin(tenant, 202, ended=200) as reply:
        if reply.is_new:
            quotas.spend(tenant, [body.text])
            await reply.give(await _store(tenant, service, body, service.known(MOCK.name).name, reply))
    return reply.response


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
) -> Accepted:
    return await service.embed(
        tenant,
        body.asset_id,
        body.segment_id,
        body.text,
        model=model,
        model_ver=body.model_ver,
        metadata=body.metadata,
        answers=reply.answers,
    )
