"""The routes of document segments, `/vectors`."""

from functools import partial
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import BaseModel

from likewise.apps.body import JsonBody
from likewise.apps.collections.schemas import MAX_ID, WHOLE
from likewise.apps.deps import (
    BODY_REFUSALS,
    Answer,
    Reader,
    Segments,
    Spending,
    Writer,
    documented_body,
    refusals,
    services,
)
from likewise.apps.embed.asking import ProcessEmbedder
from likewise.apps.idempotency import Once
from likewise.apps.leaving import while_connected
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
from likewise.apps.segments.service import Accepted, AcceptedBatch
from likewise.embedding.models import MOCK
from likewise.errors import NotFound

router = APIRouter(prefix="/vectors", tags=["segments"])

PointId = Annotated[UUID, Path(description="A segment's point_id.")]
AssetId = Annotated[
    str, Path(json_schema_extra={"minLength": 1, "maxLength": MAX_ID, "pattern": WHOLE}, description="An asset's id.")
]


def accepted(answer: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The documented answers of a route that stores: which of two it is follows from what is stored already."""
    done = {"model": answer, "description": "Nothing is left to do: the job has succeeded."}
    return {200: done, **refusals(*BODY_REFUSALS, 409, 429)}


def how_far(stored: Accepted | AcceptedBatch) -> int:
    """202 while there is something to wait for."""
    return 200 if stored.status == "SUCCEEDED" else 202


@router.post(
    "/embed",
    status_code=202,
    response_model=EmbedAnswer,
    responses=accepted(EmbedAnswer),
    openapi_extra=documented_body(SegmentEmbedIn),
)
async def embed_segment(
    tenant: Writer,
    service: Segments,
    once: Once,
    spend: Spending,
    embedder: ProcessEmbedder,
    body: Annotated[SegmentEmbedIn, Depends(JsonBody(SegmentEmbedIn))],
) -> Response:
    """Store a segment and have it embedded. With the text that it holds already, the job that stored it answers."""
    embedder.known(body.model)
    spend(tenant, [body.text])
    return await _embed(tenant, service, once, body, body.model)


@router.post(
    "/embed/batch",
    status_code=202,
    response_model=EmbedBatchAnswer,
    responses=accepted(EmbedBatchAnswer),
    openapi_extra=documented_body(SegmentBatchIn),
)
async def embed_segments(
    tenant: Writer,
    service: Segments,
    once: Once,
    spend: Spending,
    embedder: ProcessEmbedder,
    body: Annotated[SegmentBatchIn, Depends(JsonBody(SegmentBatchIn))],
) -> Response:
    """Store segments of an asset, all or none, with one job for all of them."""
    embedder.known(body.model)
    spend(tenant, [one.text for one in body.segments])
    batch = [one.to_segment() for one in body.segments]
    work = partial(service.embed_batch, tenant, body.asset_id, batch, model=body.model, model_ver=body.model_ver)
    return await once.answer(tenant, lambda save: work(save=save), status=how_far)


@router.post(
    "/documents",
    status_code=202,
    response_model=DocumentAnswer,
    responses=accepted(DocumentAnswer),
    openapi_extra=documented_body(SegmentDocumentIn),
)
async def embed_document(
    tenant: Writer,
    service: Segments,
    once: Once,
    spend: Spending,
    embedder: ProcessEmbedder,
    request: Request,
    body: Annotated[SegmentDocumentIn, Depends(JsonBody(SegmentDocumentIn))],
) -> Response:
    """Split a text into segments and store these, `chunk_0`, `chunk_1` and so on; those of a longer text before go."""
    embedder.known(body.model)
    spend(tenant, [body.text])
    work = partial(
        service.embed_document,
        tenant,
        body.asset_id,
        body.text,
        model=body.model,
        model_ver=body.model_ver,
        metadata=body.metadata,
        max_tokens=body.max_tokens,
        overlap=body.overlap,
        splitting=partial(while_connected, request),
    )
    return await once.answer(tenant, lambda save: work(save=save), status=how_far)


@router.post(
    "/search",
    response_model=SegmentSearchAnswer,
    responses=refusals(*BODY_REFUSALS, 429),
    openapi_extra=documented_body(SegmentSearchIn, references={"filters": "Filter"}),
)
async def search_segments(
    tenant: Reader,
    service: Segments,
    spend: Spending,
    body: Annotated[SegmentSearchIn, Depends(JsonBody(SegmentSearchIn))],
) -> Answer:
    """The segments nearest to a query; none, where none have been stored."""
    service.known(body.model)
    spend(tenant, [body.query_text])
    return Answer(await service.search(tenant, body.to_query()))


@router.post(
    "/search/async",
    status_code=202,
    response_model=SearchJobAnswer,
    responses=refusals(*BODY_REFUSALS, 409, 429),
    openapi_extra=documented_body(SegmentSearchIn, references={"filters": "Filter"}),
)
async def search_segments_later(
    tenant: Reader,
    service: Segments,
    once: Once,
    spend: Spending,
    body: Annotated[SegmentSearchIn, Depends(JsonBody(SegmentSearchIn))],
) -> Response:
    """The same as a job, whose result is what the search answers."""
    service.known(body.model)
    spend(tenant, [body.query_text])
    return await once.answer(tenant, lambda save: service.search_later(tenant, body.to_query(), save=save), status=202)


@router.post("/mock", status_code=202, include_in_schema=False)
async def embed_made_up(tenant: Writer, service: Segments, once: Once, spend: Spending, request: Request) -> Response:
    """The same as /embed with made-up vectors, where LIKEWISE_ENABLE_MOCK allows it."""
    if not services(request).runtime.settings.enable_mock:
        raise NotFound
    body = await JsonBody(SegmentEmbedIn)(request)
    spend(tenant, [body.text])
    return await _embed(tenant, service, once, body, MOCK.name)


@router.delete("/asset/{asset_id:path}", status_code=204, responses=refusals(400, 404))
async def delete_asset(tenant: Writer, service: Segments, asset_id: AssetId) -> Response:
    """Delete all segments of an asset; they are gone from every table before the answer. Its id may hold `/`."""
    await service.delete_asset(tenant, asset_id)
    return Response(status_code=204)


@router.delete("/{point_id:uuid}", status_code=204, responses=refusals(400, 404))
async def delete_segment(tenant: Writer, service: Segments, point_id: PointId) -> Response:
    """Delete a segment; it is gone from every table before the answer."""
    await service.delete_point(tenant, point_id)
    return Response(status_code=204)


async def _embed(tenant: int, service: Segments, once: Once, body: SegmentEmbedIn, model: str | None) -> Response:
    work = partial(
        service.embed,
        tenant,
        body.asset_id,
        body.segment_id,
        body.text,
        model=model,
        model_ver=body.model_ver,
        metadata=body.metadata,
    )
    return await once.answer(tenant, lambda save: work(save=save), status=how_far)
