"""`likewise jobs`: list, show, cancel and retry jobs."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Annotated
from uuid import UUID

import typer

from likewise.apps.jobs.service import JobAnswer, JobsService
from likewise.apps.registry import APPS
from likewise.cli.opening import open_as_owner, open_to_serve, tenant_id
from likewise.cli.running import AsJson, command_settings, in_loop
from likewise.cli.terminal import answer, answer_list
from likewise.db.collections import tenant_named
from likewise.runtime import ONLY_TENANT

BY_OWNER = "Jobs of a tenant by its name are looked up by the owner of the database."

JobTenant = Annotated[
    str | None, typer.Option("--tenant", help="Whose jobs; absent: those of a server without authentication.")
]
JobArgument = Annotated[UUID, typer.Argument(help="A job's id.")]


class JobStatus(StrEnum):
    """A state of a job."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


jobs = typer.Typer()


@jobs.command("list")
@in_loop
async def list_jobs(
    status: Annotated[JobStatus | None, typer.Option(help="Only those that are so far.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="Most jobs to show, newest first.")] = 20,
    tenant: JobTenant = None,
    as_json: AsJson = False,
) -> None:
    """Show jobs, newest first."""
    async with _service(tenant) as (service, number):
        found = await service.list(number, limit, status=None if status is None else status.value)
    answer_list("jobs", found, _line, "There are no such jobs.", as_json=as_json)


@jobs.command()
@in_loop
async def show(job: JobArgument, tenant: JobTenant = None, as_json: AsJson = False) -> None:
    """Show one job, with what it came to."""
    await _act(tenant, lambda service, number: service.get(number, job), as_json=as_json)


@jobs.command()
@in_loop
async def cancel(job: JobArgument, tenant: JobTenant = None, as_json: AsJson = False) -> None:
    """End a job; what nothing else waits for is given up."""
    await _act(tenant, lambda service, number: service.cancel(number, job), as_json=as_json)


@jobs.command()
@in_loop
async def retry(job: JobArgument, tenant: JobTenant = None, as_json: AsJson = False) -> None:
    """Have what failed of a job tried again."""
    await _act(tenant, lambda service, number: service.retry(number, job), as_json=as_json)


async def _act(
    tenant: str | None, action: Callable[[JobsService, int], Awaitable[JobAnswer]], *, as_json: bool
) -> None:
    async with _service(tenant) as (service, number):
        job = await action(service, number)
    results = (f"  {name}: {value}" for name, value in (job.result or {}).items())
    answer(job, _line(job), *results, as_json=as_json)


@asynccontextmanager
async def _service(tenant: str | None) -> AsyncIterator[tuple[JobsService, int]]:
    """Open the service of jobs, and look up the tenant whose jobs are meant."""
    settings = command_settings()
    number = None
    if tenant is not None:
        async with open_as_owner(settings, BY_OWNER) as owner:
            number = await tenant_id(owner, tenant)
    async with open_to_serve(settings) as pool:
        # Workers look for what waits each second, and need not be told.
        yield JobsService(pool, APPS), number or await tenant_named(pool, ONLY_TENANT)


def _line(job: JobAnswer) -> str:
    why = f"  {job.error.code}: {job.error.message}" if job.error else ""
    return f"{job.job_id}  {job.status:<9}  {job.created_at:%Y-%m-%d %H:%M:%S}  {job.kind}{why}"
