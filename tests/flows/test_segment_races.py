"""Segments that are deleted while they are written."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import pytest
from psycopg import AsyncConnection

from likewise.apps.segments import SegmentQuery
from likewise.errors import NotFound
from likewise.library import Likewise
from likewise.testing import DatabaseUrls
from tests.patience import until

pytestmark = pytest.mark.usefixtures("whole")

COLD = "the pump fails when it is cold"
WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted"


@asynccontextmanager
async def held(database: DatabaseUrls) -> AsyncIterator[AsyncConnection]:
    """While the block runs nobody gets at any content."""
    async with await AsyncConnection.connect(database.owner) as connection:
        await connection.execute("SELECT 1 FROM likewise.contents FOR UPDATE")
        yield connection


async def test_a_point_that_another_has_replaced_is_deleted_no_more(lw: Likewise, database: DatabaseUrls) -> None:
    # Given
    tenant = await lw.tenant()
    first = await lw.segments.embed(tenant, "manual", "1", COLD, model_ver="v1")

    async def is_done() -> bool:
        return (await lw.jobs.get(tenant, first.job_id)).status == "SUCCEEDED"

    await until(is_done)
    # When another version takes its place after the deletion has begun, and before it has the locks
    async with held(database), await AsyncConnection.connect(database.owner, autocommit=True) as watching:

        async def waiting() -> int:
            found = await (await watching.execute(WAITING)).fetchone()
            return int(found[0]) if found else 0

        async def one_waits() -> bool:
            return await waiting() == 1

        async def two_wait() -> bool:
            return await waiting() == 2

        writing = asyncio.create_task(lw.segments.embed(tenant, "manual", "1", COLD, model_ver="v2"))
        await until(one_waits)
        deleting = asyncio.create_task(lw.segments.delete_point(tenant, UUID(first.point_id)))
        await until(two_wait)
    second = await writing
    # Then there was nothing to delete
    with pytest.raises(NotFound):
        await deleting
    [hit] = (await lw.segments.search(tenant, SegmentQuery(COLD))).results
    assert (hit.point_id, hit.payload["model_ver"]) == (second.point_id, "v2")
    assert second.point_id != first.point_id
    # And what is there goes
    await lw.segments.delete_point(tenant, UUID(second.point_id))
    assert (await lw.segments.search(tenant, SegmentQuery(COLD))).results == []
