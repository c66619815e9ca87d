"""Rows that are looked at from outside."""

from collections.abc import AsyncIterator

import pytest

from likewise.testing import DatabaseUrls, FakeProvider
from tests.flows.invariants import broken


@pytest.fixture
async def whole(database: DatabaseUrls, provider: FakeProvider) -> AsyncIterator[None]:
    """After the test, and after its Likewise has closed, the rows are whole."""
    yield
    assert await broken(database.owner, provider) == {}
