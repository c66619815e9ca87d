"""What the journeys share: a check of the rows after each, and workers to race with."""

from collections.abc import AsyncIterator

import pytest

from likewise.testing import DatabaseUrls, FakeProvider
from tests.flows.invariants import broken, deadlocks


@pytest.fixture
async def whole(database: DatabaseUrls, provider: FakeProvider) -> AsyncIterator[None]:
    """After the test, and after its Likewise has closed: no orphan, no wrong vector, and no deadlock on the way."""
    yield
    assert await broken(database.owner, provider) == {}
    assert await deadlocks(database.owner) == 0
