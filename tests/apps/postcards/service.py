"""The kind of postcards, and what can be done with them."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

from psycopg.sql import SQL

from likewise.apps.jobs.service import JobResult
from likewise.ingest.tasks import Progress
from likewise.ingest.writer import Destination, NewCollection
from likewise.kind import Kind, NewRecord
from likewise.runtime import Runtime

KIND = Kind(name="postcards", aliases={"place": "parent"})
COLLECTION, COUNT = "postcards:all", "postcards_count"
COUNT_ALL = SQL("SELECT count(*) FROM records r JOIN collections c ON c.id = r.collection WHERE c.name = %s")
COUNT_RESULT = JobResult(listed=lambda job: {"postcards": job.result["n"]})


class PostcardsService:
    """Postcards by the place that they come from."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def store(self, tenant: int, id: str, text: str, place: str) -> None:
        """Store a postcard."""
        into = Destination(COLLECTION, KIND, NewCollection(self._runtime.embedder.known(), KIND.policy))
        await self._runtime.writer.write(tenant, into, [NewRecord(id, text, parent=place)])

    async def count_later(self, tenant: int) -> UUID:
        """Have the postcards counted by a worker."""
        job = uuid4()
        async with self._runtime.pool.tenant(tenant) as tx:
            await self._runtime.tasks.add(tx, job, COUNT)
        return job

    async def count(self, tenant: int, input: bytes | None, progress: Progress) -> Mapping[str, Any]:
        """Count them; a Handler of tasks."""
        async with self._runtime.pool.tenant(tenant) as tx:
            row = await tx.row(COUNT_ALL, [COLLECTION])
        return {"n": row[0] if row else 0}
