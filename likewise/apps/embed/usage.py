"""Usage: sums by model and hour, the counts of the embedder that this one replaces, and their routes."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, Field, WithJsonSchema

from likewise.apps.answers import Answer, refusals
from likewise.apps.declaration import Load, declares
from likewise.apps.deps import CanRead, CanWrite, ServiceOf
from likewise.apps.embed.service import Metrics
from likewise.apps.fields import TIME, Moment
from likewise.apps.idempotency import Once
from likewise.db import usage
from likewise.db.usage import UsageGroup, UsageKey
from likewise.embedding.costs import Usage
from likewise.errors import Invalid
from likewise.ingest.unit_of_work import AnswerStore
from likewise.runtime import Runtime

GroupBy = Literal["model", "hour"]

# Where nobody says since when.
USUAL = timedelta(days=30)
# By the hour that is 8,784 rows.
LONGEST_BY_HOUR = timedelta(days=366)
FIRST_MOMENT = datetime.min.replace(tzinfo=UTC)
RESET = {"status": "success", "message": "The metrics of your tenant count from now. What was used stays in the rows."}


@dataclass(frozen=True)
class UsageReport:
    """Usage of the hours from `since` on that began before `until`.

    `usage` has for each model or hour that has any its sums, and `total` those of all. Costs are in US dollars.
    """

    since: datetime
    until: datetime
    group_by: UsageGroup
    usage: list[dict[str, Any]]
    total: Usage


class UsageService:
    """The usage of tenants, to the last text that this process embedded."""

    def __init__(self, runtime: Runtime) -> None:
        self._pool = runtime.pool
        self._bookkeeping = runtime.bookkeeping
        self._embedder = runtime.embedder
        # The old counts are of vectors.
        self._others = [spec.name for spec in runtime.reranking.models()]

    async def metrics(self, tenant: int) -> Metrics:
        """Return the tenant's counts since its last reset, under the names that the old embedder gave them."""
        await self._bookkeeping.flush()
        return Metrics.of(await usage.since_reset(self._pool, tenant, self._others), self._embedder)

    async def reset(self, tenant: int, answers: AnswerStore | None = None) -> dict[str, str]:
        """Have `metrics` of a tenant begin anew; `answers` keep the answer in the same transaction."""
        await self._bookkeeping.flush()
        async with self._pool.tenant(tenant) as tx:
            await usage.reset(tx, tenant, self._others)
            if answers is not None:
                await answers.save(tx, RESET)
        return RESET

    async def report(
        self, tenant: int, since: datetime | None = None, until: datetime | None = None, group_by: GroupBy = "model"
    ) -> UsageReport:
        """Return the usage of a tenant, of 30 days by default; Invalid if `since` is not before `until`, or too far."""
        since, until = window(since, until)
        if group_by == "hour" and until - since > LONGEST_BY_HOUR:
            raise Invalid.at(
                "/since",
                f"By the hour {LONGEST_BY_HOUR.days} days can be asked for at once; ask for parts.",
                "too_long",
            )
        await self._bookkeeping.flush()
        return reported(since, until, group_by, await usage.grouped(self._pool, tenant, since, until, group_by))


def window(since: datetime | None, until: datetime | None) -> tuple[datetime, datetime]:
    """Return the time to report on, from the beginning of an hour; Invalid if it ends before it begins."""
    until = until or datetime.now(UTC)
    since = since or until - min(USUAL, until - FIRST_MOMENT)
    if since >= until:
        raise Invalid.at("/since", "This must be before `until`.", "invalid_value")
    return since.astimezone(UTC).replace(minute=0, second=0, microsecond=0), until.astimezone(UTC)


def reported(since: datetime, until: datetime, by: UsageGroup, rows: Mapping[UsageKey, Usage]) -> UsageReport:
    """Return the sums as a report."""
    total = Usage()
    for one in rows.values():
        total.add(one)
    return UsageReport(since, until, by, [{by: key} | vars(one) for key, one in rows.items()], total)


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
