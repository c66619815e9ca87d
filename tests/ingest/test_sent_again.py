"""A text that is sent again while it waits sealed waits for as long as one that has just come."""

from typing import LiteralString

import pytest

from likewise.db import jobs
from likewise.library import Likewise
from likewise.testing import DatabaseUrls
from tests.ingest.rows import asked

pytestmark = pytest.mark.usefixtures("whole")

MADE_OLDER: LiteralString = "UPDATE waiting SET entered_at = now() - interval '25 hours' RETURNING content"


async def test_its_time_begins_anew(idle: Likewise, database: DatabaseUrls) -> None:
    # Given
    tenant = await idle.tenant()
    first = await idle.segments.embed(tenant, "asset", "one", "the same text")
    await asked(database, MADE_OLDER)
    # When another segment has the same text
    second = await idle.segments.embed(tenant, "asset", "two", "the same text")
    # Then neither has waited for too long
    assert await jobs.expire(idle.runtime.pool, 100) == 0
    assert {(await idle.jobs.get(tenant, one.job_id)).status for one in (first, second)} == {"PENDING"}
