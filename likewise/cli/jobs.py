"""Verbs for jobs: list, show, cancel, retry."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from likewise.cli.names import unknown_tenant
from likewise.cli.running import OK, Interruption, run, settings_of_verb
from likewise.cli.terminal import note, say, say_json
from likewise.settings import Settings

if TYPE_CHECKING:
    from likewise.apps.jobs.service import JobsService, JobView

OWNER_ONLY = "Jobs of a tenant by its name are looked up by the owner of the database."

Tenant = Annotated[str | None, typer.Option(help="Whose jobs; absent: those of a server without authentication.")]
Id = Annotated[UUID, typer.Argument(help="A job's id.")]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]


class Status(StrEnum):
    """How far a job is."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


jobs = typer.Typer(help="Jobs: what became of work that outlived its request.", no_args_is_help=True)


@jobs.command("list")
def list_jobs(
    status: Annotated[Status | None, typer.Option(help="Only those that are so far.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="Most jobs to show, newest first.")] = 20,
    tenant: Tenant = None,
    as_json: AsJson = False,
) -> None:
    """Show jobs, newest first."""
    run(partial(_list, settings=settings_of_verb(), status=status, limit=limit, tenant=tenant, as_json=as_json))


@jobs.command()
def show(job: Id, tenant: Tenant = None, as_json: AsJson = False) -> None:
    """Show one job, with what it came to."""
    _run_on(tenant, lambda service, number: service.get(number, job), as_json=as_json)


@jobs.command()
def cancel(job: Id, tenant: Tenant = None, as_json: AsJson = False) -> None:
    """End a job; what nothing else waits for is given up."""
    _run_on(tenant, lambda service, number: service.cancel(number, job), as_json=as_json)


@jobs.command()
def retry(job: Id, tenant: Tenant = None, as_json: AsJson = False) -> None:
    """Have what failed of a job tried again."""
    _run_on(tenant, lambda service, number: service.retry(number, job), as_json=as_json)


Doing = Callable[["JobsService", int], Awaitable["JobView"]]


def _run_on(tenant: str | None, do: Doing, *, as_json: bool) -> None:
    run(partial(_on, settings=settings_of_verb(), tenant=tenant, do=do, as_json=as_json))


async def _on(_: Interruption, *, settings: Settings, tenant: str | None, do: Doing, as_json: bool) -> int:
    async with _service(settings, tenant) as (service, number):
        job = await do(service, number)
    if as_json:
        say_json(job)
        return OK
    say(_line(job))
    for name, value in (job.result or {}).items():
        say(f"  {name}: {value}")
    return OK


async def _list(
    _: Interruption, *, settings: Settings, status: Status | None, limit: int, tenant: str | None, as_json: bool
) -> int:
    async with _service(settings, tenant) as (service, number):
        found = await service.list(number, limit, status=None if status is None else status.value)
    if as_json:
        say_json({"jobs": found})
    elif not found:
        note("There are no such jobs.")
    for job in () if as_json else found:
        say(_line(job))
    return OK


@asynccontextmanager
async def _service(settings: Settings, tenant: str | None) -> AsyncIterator[tuple["JobsService", int]]:
    """The service of jobs, and the tenant whose jobs are meant."""
    from likewise.apps.jobs.service import JobsService  # noqa: PLC0415
    from likewise.apps.registry import APPS  # noqa: PLC0415
    from likewise.cli.opening import opened_to_serve  # noqa: PLC0415
    from likewise.db.collections import tenant_named  # noqa: PLC0415
    from likewise.runtime import ONLY_TENANT  # noqa: PLC0415

    number = None if tenant is None else await _named(settings, tenant)
    async with opened_to_serve(settings) as pool:
        # Workers look for what waits each second, and need not be told.
        yield JobsService(pool, APPS), number or await tenant_named(pool, ONLY_TENANT)


async def _named(settings: Settings, tenant: str) -> int:
    from likewise.cli.opening import opened_as_owner  # noqa: PLC0415
    from likewise.db.usage import tenant_of  # noqa: PLC0415

    async with opened_as_owner(settings, OWNER_ONLY) as owner:
        number = await tenant_of(owner, tenant)
    if number is None:
        raise unknown_tenant()
    return number


def _line(job: "JobView") -> str:
    why = f"  {job.error.code}: {job.error.message}" if job.error else ""
    return f"{job.job_id}  {job.status:<9}  {job.created_at:%Y-%m-%d %H:%M:%S}  {job.kind}{why}"
