"""Rows that are looked at from outside, and workers that do not rest for long."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from likewise.backoff import Backoff
from likewise.testing import DatabaseUrls, FakeProvider
from tests.flows.invariants import broken


@pytest.fixture
async def whole(database: DatabaseUrls, provider: FakeProvider) -> AsyncIterator[None]:
    """After the test, and after its Likewise has closed, the rows are whole."""
    yield
    assert await broken(database.owner, provider) == {}


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried again soon."""
    monkeypatch.setattr("likewise.ingest.claims.RETRY_AFTER", timedelta(seconds=0.05))
    monkeypatch.setattr("likewise.db.waiting.FIRST_PAUSE", 0.02)
    monkeypatch.setattr("likewise.ingest.worker.POLL_SECONDS", 0.05)
    monkeypatch.setattr("likewise.ingest.worker.SWEEP_SECONDS", 0.05)
    monkeypatch.setattr("likewise.ingest.claims.AWAY_SECONDS", 0.1)
    monkeypatch.setattr("likewise.ingest.worker.MODEL_AGAIN", Backoff(0.02, 0.1))
