"""Usage: sums by model and hour, and the counts of the embedder that this one replaces."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from likewise.apps.embed.service import Metrics
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
