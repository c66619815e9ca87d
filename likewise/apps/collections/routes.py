"""The routes of the general API, `/api/v1/collections`."""

import re
from hashlib import sha256
from typing import Annotated

import orjson
from fastapi import APIRouter, Depends, Path, Query, Request, Response

from likewise.apps.answers import BODY_REFUSALS, Answer, refusals
from likewise.apps.body import PARSED, Lines, read_json
from likewise.apps.collections import schemas
from likewise.apps.collections.arrays import Array, checked_array, write_array
from likewise.apps.collections.lines import complete, write_lines
from likewise.apps.collections.service import CollectionsService, WriteAnswer
from likewise.apps.declaration import NDJSON, Body, Load, declares, media_type
from likewise.apps.deps import CanAdminister, CanRead, CanWrite, Metered, ServiceOf, cursor_for, page_of, position_of
from likewise.apps.fields import MAX_ID, WHOLE
from likewise.apps.idempotency import Once
from likewise.errors import NotFound

NOT_YET = "This version does not have this route yet."

router = APIRouter(prefix="/api/v1/collections", tags=["collections"])

Collections = Annotated[CollectionsService, Depends(ServiceOf(CollectionsService))]


async def existing_name(
    name: Annotated[
        str,
        Path(description="A collection's name.", json_schema_extra={"pattern": f"^{schemas.NAME_IN_PATH.pattern}$"}),
    ],
) -> str:
    """Return a name from the path; NotFound for one that no collection can have."""
    if not schemas.NAME_IN_PATH.fullmatch(name):
        raise NotFound("There is no such collection.")
    return name


Name = Annotated[str, Depends(existing_name)]
RecordId = Annotated[
    str, Path(json_schema_extra={"minLength": 1, "maxLength": MAX_ID, "pattern": WHOLE}, description="A record's id.")
]

# How many hits a search's cursor passes over.
PLACE = re.compile(r"[1-9][0-9]{0,2}")


@router.get("", response_model=schemas.CollectionsAnswer, responses=refusals(422))
@declares(Load.OTHER)
async def list_collections(
    tenant: CanRead, service: Collections, page: Annotated[schemas.PageQuery, Query()]
) -> Answer:
    """The collections by name, a page at a time."""
    after = None if page.cursor is None else position_of("collections", tenant, page.cursor, schemas.NAME_IN_PATH)
    found = await service.list(tenant, page.limit + 1, after)
    shown, following = page_of("collections", tenant, found, page.limit, lambda last: last.name)
    return Answer({"collections": shown, "cursor": following})


@router.post("", status_code=201, response_model=schemas.CollectionAnswer, responses=refusals(*BODY_REFUSALS, 409))
@declares(Load.OTHER, Body(schemas.CollectionIn))
async def create_collection(
    tenant: CanWrite, service: Collections, once: Once, body: Annotated[schemas.CollectionIn, PARSED]
) -> Response:
    """Make a collection; its model and policy are fixed from here on."""
    policy = body.policy.to_policy() if body.policy else None
    async with once.begin(tenant, 201) as reply:
        return reply.earlier or await reply.give(
            await service.create(tenant, body.name, body.model, policy, answers=reply.answers)
        )


@router.get("/{name}", response_model=schemas.CollectionAnswer, responses=refusals(400, 404))
@declares(Load.OTHER)
async def get_collection(tenant: CanRead, service: Collections, name: Name) -> Answer:
    """One collection."""
    return Answer(await service.get(tenant, name))


@router.delete("/{name}", status_code=204, responses=refusals(400, 404, 409))
@declares(Load.OTHER)
async def drop_collection(tenant: CanAdminister, service: Collections, name: Name) -> Response:
    """Drop a collection with all it holds."""
    await service.drop(tenant, name)
    return Response(status_code=204)


@router.post("/{name}/records", response_model=WriteAnswer, responses=refusals(*BODY_REFUSALS, 404, 409, 429))
@declares(
    Load.WRITE, Body(schemas.RecordsBody, others={NDJSON: schemas.RecordIn.model_json_schema()}, streamed=(NDJSON,))
)
async def write_records(
    tenant: CanWrite, service: Collections, once: Once, metered: Metered, name: Name, request: Request
) -> Response:
    """Store records: a list or `{"records": [...]}`, all or none; or NDJSON, line by line, bad lines named."""
    by_line = media_type(request.headers) == NDJSON
    array = Array([], "") if by_line else await read_json(request, checked_array)
    async with once.begin(tenant) as reply:
        if reply.earlier:
            return reply.earlier
        if by_line:
            # In many transactions, so its answer is kept after the last of them.
            result = await write_lines(service, tenant, name, Lines(request), metered.quotas)
            return await reply.give(result, lasting=complete(result))
        metered.quotas.spend(tenant, array.texts)
        return await reply.give(await write_array(service, tenant, name, array, reply.answers))


@router.get("/{name}/records/{record_id:path}", response_model=schemas.RecordView, responses=refusals(400, 404))
@declares(Load.OTHER)
async def get_record(tenant: CanRead, service: Collections, name: Name, record_id: RecordId) -> Answer:
    """One record. Its id reaches to the end of the path and may hold `/`."""
    return Answer(await service.record(tenant, name, record_id))


@router.delete("/{name}/records/{record_id:path}", status_code=204, responses=refusals(400, 404, 409))
@declares(Load.OTHER)
async def delete_record(tenant: CanWrite, service: Collections, name: Name, record_id: RecordId) -> Response:
    """Delete a record; it is gone from every table before the answer."""
    await service.delete(tenant, name, record_id)
    return Response(status_code=204)


@router.post("/{name}/search", response_model=schemas.SearchAnswer, responses=refusals(*BODY_REFUSALS, 404, 409, 429))
@declares(Load.OTHER, Body(schemas.SearchIn, references={"filters": "Filter"}))
async def search_collection(
    tenant: CanRead, service: Collections, metered: Metered, name: Name, body: Annotated[schemas.SearchIn, PARSED]
) -> Answer:
    """The records nearest in meaning and words to a query, or to a record."""
    metered.quotas.spend(tenant, [body.query or ""])
    listing = search_listing(name, body)
    offset = 0 if body.cursor is None else int(position_of(listing, tenant, body.cursor, PLACE))
    found = await metered.search(service.search(tenant, name, body.to_request(offset)), rerank=body.rerank)
    following = cursor_for(listing, tenant, str(offset + body.limit)) if found.more else None
    return Answer(
        schemas.SearchAnswer(found.hits, found.model, found.took_ms, found.degraded, following, found.explanation)
    )


def search_listing(name: str, body: schemas.SearchIn) -> str:
    """Return the name of a search's listing: the collection, and all that was asked but for the page."""
    asked = body.model_dump(exclude={"cursor", "limit", "explain"})
    return f"search\0{name}\0{sha256(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)).hexdigest()}"


@router.get("/{name}/stats", response_model=schemas.StatsAnswer, responses=refusals(400, 404))
@declares(Load.OTHER)
async def collection_stats(tenant: CanRead, service: Collections, name: Name) -> Answer:
    """Counts of the collection, and the state of its vectors."""
    return Answer(await service.stats(tenant, name))


@router.api_route("/{name}/clusters", methods=["GET", "POST"], include_in_schema=False)
@router.get("/{name}/clusters/{cluster}", include_in_schema=False)
@declares(Load.OTHER)
async def clusters_come_later(_: CanRead) -> Response:
    """Routes of the full API that this version knows by name only."""
    raise NotFound(NOT_YET, code="not_supported")


@router.post("/{name}/reembed", include_in_schema=False)
@router.post("/{name}/switch", include_in_schema=False)
@router.post("/{name}/rollback", include_in_schema=False)
@declares(Load.OTHER)
async def generations_come_later(_: CanAdminister) -> Response:
    """Answer for the routes that are to change the model of a collection."""
    raise NotFound(NOT_YET, code="not_supported")
