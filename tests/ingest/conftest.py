"""A Likewise whose rows are looked at from outside."""

from collections.abc import AsyncIterator

import pytest

from likewise.library import Likewise
from likewise.testing import DatabaseUrls, FakeProvider
from tests.conftest import Opener
from tests.flows.invariants import broken


@pytest.fixture
async def idle(open_likewise: Opener) -> AsyncIterator[Likewise]:
    """A Likewise that embeds only what it is told to."""
    async with open_likewise(worker=False) as lw:
        yield lw


@pytest.fixture
async def whole(database: DatabaseUrls, provider: FakeProvider) -> AsyncIterator[None]:
    """After the test, and after its Likewise has closed, the rows are whole."""
    yield
    assert await broken(database.owner, provider) == {}
