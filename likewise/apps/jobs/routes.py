"""The routes of jobs, `/jobs`."""

import re
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query, Response
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from likewise.apps.answers import Answer, refusals
from likewise.apps.declaration import Load, declares
from likewise.apps.deps import CanRead, CanWrite, ServiceOf, forged, page_of, position_of
from likewise.apps.fields import MAX_LIMIT
from likewise.apps.idempotency import Once
from likewise.apps.jobs.service import JobAnswer, JobsService
from likewise.db.jobs import JobCursor, JobState


class JobsAnswer(BaseModel):
    """A page of jobs, newest first; `cursor` leads to the next and is null on the last."""

    jobs: list[JobAnswer]
    cursor: str | None


class JobsQuery(BaseModel):
    """The part of the list of jobs to answer."""

    model_config = {"extra": "forbid"}

    status: JobState | SkipJsonSchema[None] = Field(None, description="Only those that are so far.")
    limit: int = Field(10, ge=1, le=MAX_LIMIT)
    cursor: str | SkipJsonSchema[None] = Field(None, max_length=512, description="`cursor` of the page before.")


router = APIRouter(prefix="/jobs", tags=["jobs"])

Jobs = Annotated[JobsService, Depends(ServiceOf(JobsService))]

JobId = Annotated[UUID, Path(description="A job's id.")]
# Where a page of the list begins: after a job that was made then, whether it is still there or not.
PLACE = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]{8,15}\+00:00 [0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@router.get("", response_model=JobsAnswer, responses=refusals(422))
@declares(Load.OTHER)
async def list_jobs(tenant: CanRead, service: Jobs, page: Annotated[JobsQuery, Query()]) -> Answer:
    """Jobs, newest first, a page at a time; results do not name what failed or was found, as that of one job does."""
    listing = f"jobs\0{page.status or ''}"
    after = None if page.cursor is None else _place(position_of(listing, tenant, page.cursor, PLACE))
    found = await service.list(tenant, page.limit + 1, status=page.status, after=after)
    shown, following = page_of(listing, tenant, found, page.limit, _written)
    return Answer({"jobs": shown, "cursor": following})


@router.get("/{job_id:uuid}", response_model=JobAnswer, responses=refusals(400, 404))
@declares(Load.OTHER)
async def get_job(tenant: CanRead, service: Jobs, job_id: JobId) -> Answer:
    """One job."""
    return Answer(await service.get(tenant, job_id))


@router.post("/{job_id:uuid}/cancel", response_model=JobAnswer, responses=refusals(400, 404, 409, 413, 422))
@declares(Load.OTHER)
async def cancel_job(tenant: CanWrite, service: Jobs, once: Once, job_id: JobId) -> Response:
    """End a job that has not ended; what nothing else waits for is given up."""
    async with once.begin(tenant) as reply:
        return reply.earlier or await reply.give(await service.cancel(tenant, job_id, answers=reply.answers))


@router.post("/{job_id:uuid}/retry", response_model=JobAnswer, responses=refusals(400, 404, 409, 413, 422))
@declares(Load.OTHER)
async def retry_job(tenant: CanWrite, service: Jobs, once: Once, job_id: JobId) -> Response:
    """Have what failed of a job tried again; 409 `text_gone` where a text is no longer kept: send it again."""
    async with once.begin(tenant) as reply:
        return reply.earlier or await reply.give(await service.retry(tenant, job_id, answers=reply.answers))


def _written(job: JobAnswer) -> str:
    return f"{job.created_at.astimezone(UTC).isoformat()} {job.job_id}"


def _place(written: str) -> JobCursor:
    at, _, job = written.partition(" ")
    try:
        return datetime.fromisoformat(at), UUID(job)
    except ValueError:
        # The seal is no secret: a place that no clock shows.
        raise forged() from None
