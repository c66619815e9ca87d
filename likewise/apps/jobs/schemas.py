"""What the routes of jobs take and answer."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from likewise.apps.collections.schemas import MAX_LIMIT

Status = Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED"]


class JobErrorAnswer(BaseModel):
    """Why a job came to nothing."""

    code: str
    message: str


class JobAnswer(BaseModel):
    """A job. `result` is null until it has succeeded, `error` unless it failed or was cancelled."""

    job_id: UUID
    kind: str
    status: Status
    created_at: datetime
    updated_at: datetime
    result: dict[str, Any] | None
    error: JobErrorAnswer | None


class JobsAnswer(BaseModel):
    """A page of jobs, newest first; `cursor` leads to the next and is null on the last."""

    jobs: list[JobAnswer]
    cursor: str | None


class JobsQuery(BaseModel):
    """Which jobs to answer."""

    model_config = {"extra": "forbid"}

    status: Status | SkipJsonSchema[None] = Field(None, description="Only those that are so far.")
    limit: int = Field(10, ge=1, le=MAX_LIMIT)
    cursor: str | SkipJsonSchema[None] = Field(None, max_length=512, description="`cursor` of the page before.")
