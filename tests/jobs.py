"""A job, once it has ended: over HTTP, and from the library."""

from typing import Any
from uuid import UUID

import httpx2

from likewise.library import Likewise
from tests.patience import until

OPEN = ("PENDING", "RUNNING")


async def ended_over_http(client: httpx2.AsyncClient, job: str) -> dict[str, Any]:
    """What GET /jobs/{job_id} answers once the job has ended; `job` is its id."""
    found: dict[str, Any] = {}

    async def over() -> bool:
        answer = await client.get(f"/jobs/{job}")
        assert answer.status_code == 200, answer.text
        found.update(answer.json())
        return found["status"] not in OPEN

    await until(over)
    return found


async def ended(lw: Likewise, tenant: int, job: UUID) -> Any:
    """The tenant's job, once it has ended."""

    async def over() -> bool:
        return (await lw.jobs.get(tenant, job)).status not in OPEN

    await until(over)
    return await lw.jobs.get(tenant, job)
