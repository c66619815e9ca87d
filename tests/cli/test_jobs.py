"""`likewise jobs`: what became of work, looked at and acted upon from the command line."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

import likewise
from likewise.apps.segments.documents import NewSegment
from likewise.db import collections
from likewise.settings import load_settings
from tests.cli.conftest import Run


@pytest.fixture(scope="module")
async def jobs(environment: dict[str, str]) -> AsyncIterator[dict[str, UUID]]:
    """A job of the only tenant's and one of another's; no worker has them."""
    settings = load_settings(
        data_dir=Path(environment["LIKEWISE_DATA_DIR"]),
        database_url=environment["LIKEWISE_DATABASE_URL"],
        database_serving_url=environment["LIKEWISE_DATABASE_SERVING_URL"],
        offline=True,
    )
    async with likewise.open(settings, worker=False) as lw:
        made = {}
        for name in ("default", "acme"):
            tenant = await collections.tenant_named(lw.runtime.pool, name)
            made[name] = (await lw.segments.embed_batch(tenant, "a", [NewSegment("1", "a cold pump", {})])).job_id
        yield made


def test_jobs_are_listed_shown_and_cancelled(likewise_command: Run, jobs: dict[str, UUID]) -> None:
    # When
    listed = likewise_command("jobs", "list", "--json")
    shown = likewise_command("jobs", "show", str(jobs["default"]))
    cancelled = likewise_command("jobs", "cancel", str(jobs["default"]), "--json")
    again = likewise_command("jobs", "cancel", str(jobs["default"]))
    # Then
    assert [one["job_id"] for one in json.loads(listed.stdout)["jobs"]] == [str(jobs["default"])]
    assert "PENDING" in shown.stdout
    assert json.loads(cancelled.stdout)["status"] == "CANCELLED"
    assert (again.returncode, again.stdout) == (1, "")
    assert "has ended already" in again.stderr
    assert "It was cancelled." in likewise_command("jobs", "list", "--status", "CANCELLED").stdout
    assert "no such jobs" in likewise_command("jobs", "list", "--status", "FAILED").stderr


def test_jobs_of_a_tenant_by_its_name(likewise_command: Run, jobs: dict[str, UUID]) -> None:
    listed = likewise_command("jobs", "list", "--tenant", "acme", "--json")
    assert [one["job_id"] for one in json.loads(listed.stdout)["jobs"]] == [str(jobs["acme"])]
    foreign = likewise_command("jobs", "show", str(jobs["acme"]))
    assert (foreign.returncode, "no job of this id" in foreign.stderr) == (1, True)
    unknown = likewise_command("jobs", "list", "--tenant", "nobody")
    assert (unknown.returncode, "no tenant of this name" in unknown.stderr) == (1, True)


def test_what_cannot_be_done_is_said_in_a_line(likewise_command: Run) -> None:
    missing = likewise_command("jobs", "retry", str(uuid4()))
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)
    assert likewise_command("jobs", "show", "x").returncode == 2


def test_a_vector_size_that_is_not_the_models_stops_the_start(likewise_command: Run) -> None:
    for verb in (["serve", "--port", "0"], ["worker"]):
        done = likewise_command(*verb, LIKEWISE_VECTOR_SIZE="768")
        assert done.returncode == 3
        assert done.stderr == (
            "likewise: Embedding dimension mismatch: 'sentence-transformers/all-MiniLM-L6-v2' makes 384-dimensional "
            "vectors but LIKEWISE_VECTOR_SIZE=768. Set LIKEWISE_VECTOR_SIZE=384, or remove it.\n"
        )
