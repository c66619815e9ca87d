"""JobsService: jobs as their callers see them, for routes and for programs alike."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Any
from uuid import UUID

from likewise.apps.registry import App, loaded
from likewise.db import jobs
from likewise.db.jobs import Job, JobCursor, JobState
from likewise.db.pool import Pool, retried
from likewise.db.transaction import Tx
from likewise.ingest.unit_of_work import AnswerStore

# Why a job, or an item of one, came to nothing. A code that is not here has no words of its own.
REASONS: Mapping[str, str] = {
    jobs.CANCELLED: "It was cancelled.",
    jobs.DELETED: "What it was about was deleted before it was done.",
    jobs.REPLACED: "Another text came in its place before it was done.",
    "text_expired": "The text waited for its model for as long as it may be kept, and has left. Send it again.",
    "text_failed": "The model cannot read this text.",
    "text_unreadable": "The text could not be read again. Send it again.",
    "text_key_lost": "The key that the text waited encrypted with was lost. Send it again.",
    "lease_lost": "Each worker that had it stopped before it was done. Send it again, or without this text.",
    "blank": "The text is blank.",
    "too_long": "The text is longer than may be embedded.",
    "model_not_allowed": "The model is not allowed here any more; name one that is listed.",
    "model_failed": "The model failed each time that it was tried; the server's log has the reason.",
    "internal": "The server failed each time that it was tried; its log has the reason.",
}
WITHOUT_WORDS = "It could not be done; the log of the process that tried has the reason."


@dataclass(frozen=True)
class JobErrorAnswer:
    """The reason for which a job came to nothing."""

    code: str
    message: str


@dataclass(frozen=True)
class JobAnswer:
    """A job. `result` is null until it has succeeded, `error` unless it failed or was cancelled."""

    job_id: UUID
    kind: str
    status: JobState
    created_at: datetime
    updated_at: datetime
    result: Mapping[str, Any] | None
    error: JobErrorAnswer | None


@dataclass(frozen=True)
class JobResult:
    """The reading of a kind of jobs' results: in a list of jobs from the row alone, and by itself in full."""

    listed: Callable[[Job], Mapping[str, Any]] = attrgetter("result")
    in_full: Callable[[Tx, Job], Awaitable[Mapping[str, Any]]] | None = None


class JobsService:
    """Looks at jobs, ends them and has them tried again."""

    def __init__(self, pool: Pool, apps: Sequence[App], wake: Callable[[], None] = lambda: None) -> None:
        """Know how the jobs of apps read; `wake` says that something waits for a worker again."""
        self._pool = pool
        self._wake = wake
        self._results: Mapping[str, JobResult] = loaded(apps, "job_results")
        self._reasons = {**REASONS, **{code: words for app in apps for code, words in app.job_errors.items()}}

    async def get(self, tenant: int, job: UUID) -> JobAnswer:
        """One job; NotFound if this tenant has none of this id."""
        async with self._pool.tenant(tenant, snapshot=True) as tx:
            return await self._view(tx, job)

    async def list(
        self, tenant: int, limit: int, *, status: JobState | None = None, after: JobCursor | None = None
    ) -> Sequence[JobAnswer]:
        """Jobs, newest first, those that follow the place `after`; results name neither failures nor hits."""
        async with self._pool.tenant(tenant, snapshot=True) as tx:
            return [self._listed(one) for one in await jobs.listed(tx, limit=limit, state=status, after=after)]

    async def cancel(self, tenant: int, job: UUID, *, answers: AnswerStore | None = None) -> JobAnswer:
        """End a job; what nothing else waits for is given up. `answers` keep what is answered, as of `retry`.

        Raises:
            NotFound: this tenant has none of this id.
            Conflict: it has ended.
        """
        return await self._changed(tenant, job, jobs.cancel, answers)

    async def retry(self, tenant: int, job: UUID, *, answers: AnswerStore | None = None) -> JobAnswer:
        """Have what failed of a job tried again.

        Raises:
            NotFound: this tenant has none of this id.
            Conflict: nothing of it has failed, it has not ended, or a text has left: code `text_gone`.
        """
        changed = await self._changed(tenant, job, jobs.retry, answers)
        self._wake()
        return changed

    async def _changed(
        self, tenant: int, job: UUID, change: Callable[[Tx, UUID], Awaitable[None]], answers: AnswerStore | None
    ) -> JobAnswer:
        async def once() -> JobAnswer:
            async with self._pool.tenant(tenant) as tx:
                await change(tx, job)
                view = await self._view(tx, job)
                if answers is not None:
                    await answers.save(tx, view)
                return view

        return await retried(once)

    async def _view(self, tx: Tx, job: UUID) -> JobAnswer:
        found = await jobs.of(tx, job)
        in_full = self._result_of(found).in_full
        if in_full is None or found.state != "SUCCEEDED":
            return self._listed(found)
        return self._rendered(found, await in_full(tx, found))

    def _listed(self, job: Job) -> JobAnswer:
        return self._rendered(job, self._result_of(job).listed(job) if job.state == "SUCCEEDED" else None)

    def _result_of(self, job: Job) -> JobResult:
        return self._results.get(job.kind, _AS_KEPT)

    def _rendered(self, job: Job, result: Mapping[str, Any] | None) -> JobAnswer:
        failed = job.state in ("FAILED", "CANCELLED") and job.error
        error = JobErrorAnswer(job.error, self._reasons.get(job.error, WITHOUT_WORDS)) if failed and job.error else None
        return JobAnswer(job.id, job.kind, job.state, job.created_at, job.updated_at, result, error)


_AS_KEPT = JobResult()
