"""Routes of usage: by model or hour, and as the counts of the embedder that this one replaces."""

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, Field, WithJsonSchema

from likewise.apps.answers import Answer, refusals
from likewise.apps.declaration import Load, declares
from likewise.apps.deps import CanRead, CanWrite, ServiceOf
from likewise.apps.embed.service import Metrics
from likewise.apps.embed.usage import LONGEST_BY_HOUR, USUAL, GroupBy, UsageService
from likewise.apps.fields import TIME, Moment
from likewise.apps.idempotency import Once

router = APIRouter(tags=["embed"])

# A parameter is absent or a time, and never null.
MaybeMoment = Annotated[Moment | None, WithJsonSchema(TIME)]


class UsageQuery(BaseModel):
    """The time to report on, and its grouping."""

    model_config = {"extra": "forbid"}

    since: MaybeMoment = Field(None, description=f"By default {USUAL.days} days before `until`.")
    until: MaybeMoment = Field(None, description="By default now.")
    group_by: GroupBy = Field("model", description=f"`hour` takes {LONGEST_BY_HOUR.days} days at most.")


class Sums(BaseModel):
    """Texts that were asked for and tokens that they took; costs in US dollars."""

    texts: int = Field(description="Answered with a vector.")
    cached: int = Field(description="Of these, by the cache.")
    generated: int = Field(description="Embedded by a model.")
    tokens: int = Field(description="Read by a model.")
    truncated: int = Field(description="Tokens cut off before it.")
    estimated: int = Field(description="Of `tokens`, those that nobody counted: a fourth of the characters.")
    cost: float = Field(description="Of `tokens`.")
    cost_avoided: float = Field(description="Of texts whose vector was known, or was being made.")


class UsageOfModel(Sums):
    """Usage of one model."""

    model: str


class UsageOfHour(Sums):
    """Usage of the hour that begins at `hour`."""

    hour: datetime


class UsageAnswer(BaseModel):
    """Usage of the tenant in the hours from `since` on that began before `until`."""

    since: datetime
    until: datetime
    group_by: GroupBy
    usage: list[UsageOfModel | UsageOfHour]
    total: Sums


class MetricsAnswer(BaseModel):
    """The tenant's metrics."""

    metrics: Metrics


class ResetAnswer(BaseModel):
    """Confirmation of a reset."""

    status: Literal["success"]
    message: str


Used = Annotated[UsageService, Depends(ServiceOf(UsageService))]


@router.get("/embed/metrics", response_model=MetricsAnswer, responses=refusals())
@declares(Load.OTHER)
async def embed_metrics(tenant: CanRead, used: Used) -> Answer:
    """Usage of the caller's tenant since it last reset this, and what that cost."""
    return Answer({"metrics": await used.metrics(tenant)})


@router.post("/embed/metrics/reset", response_model=ResetAnswer, responses=refusals(400, 409, 413, 422))
@declares(Load.OTHER)
async def reset_metrics(tenant: CanWrite, used: Used, once: Once) -> Response:
    """Count the metrics of the caller's tenant from now on; what `/api/v1/usage` reports stays."""
    async with once.begin(tenant) as reply:
        return reply.earlier or await reply.give(await used.reset(tenant, reply.answers))


@router.get("/api/v1/usage", response_model=UsageAnswer, responses=refusals(422))
@declares(Load.OTHER)
async def report_usage(tenant: CanRead, used: Used, asked: Annotated[UsageQuery, Query()]) -> Answer:
    """Usage of the caller's tenant, by model or by hour."""
    return Answer(await used.report(tenant, asked.since, asked.until, asked.group_by))
