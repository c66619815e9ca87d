"""What waits for vectors has a bound, and one tenant's flood keeps no other out."""

from collections.abc import AsyncIterator

import pytest

from likewise.db import collections
from likewise.errors import Overloaded, TooManyRequests
from likewise.ingest import backlog
from likewise.kind import NewRecord
from likewise.library import Likewise
from likewise.settings import Settings
from tests.conftest import Opener

# Each text has 40 characters, which are taken for 11 tokens.
TEXT = "pump {:03d} fails when it is cold outside...."


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Room for a thousand tokens."""
    return settings.model_copy(update={"waiting_tokens": 1_000})


@pytest.fixture
async def idle(open_likewise: Opener, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Likewise]:
    """A Likewise that embeds nothing, and measures only when it is told to."""
    monkeypatch.setattr(backlog, "MIN_PAUSE", 1_000.0)
    monkeypatch.setattr(backlog, "MAX_PAUSE", 1_000.0)
    async with open_likewise(worker=False) as lw:
        yield lw


async def tenant(lw: Likewise, name: str) -> int:
    made = await collections.tenant_named(lw.runtime.pool, name)
    await lw.collections.create(made, "notes")
    return made


async def add(lw: Likewise, to: int, start: int, count: int, *, wait: bool = False) -> None:
    batch = [NewRecord(id=str(n), text=TEXT.format(n)) for n in range(start, start + count)]
    await lw.collections.write(to, "notes", batch, wait=wait)


@pytest.mark.parametrize("measured", [False, True])
async def test_a_tenant_alone_is_refused_beyond_the_bound(idle: Likewise, measured: bool) -> None:
    # Given
    only = await tenant(idle, "only")
    await add(idle, only, 0, 90)
    if measured:
        await idle.runtime.writer.backlog.measure()
    # When
    with pytest.raises(Overloaded) as refused:
        await add(idle, only, 90, 1)
    # Then
    assert refused.value.retry_after == backlog.RETRY_SECONDS
    assert (await idle.collections.stats(only, "notes"))["records"] == 90


async def test_what_is_waited_for_is_stored_all_the_same(idle: Likewise) -> None:
    only = await tenant(idle, "only")
    await add(idle, only, 0, 90)
    await add(idle, only, 90, 1, wait=True)
    assert (await idle.collections.record(only, "notes", "90")).vector == "ready"


async def test_a_flood_of_one_tenant_keeps_no_other_out(idle: Likewise) -> None:
    # Given
    flooding, small = await tenant(idle, "flooding"), await tenant(idle, "small")
    await add(idle, flooding, 0, 90)
    # When
    await add(idle, small, 0, 40)
    # Then it is the one with more than a half that has to wait
    with pytest.raises(TooManyRequests):
        await add(idle, flooding, 90, 1)
    with pytest.raises(TooManyRequests):
        await add(idle, small, 40, 10)


async def test_when_texts_have_their_vectors_there_is_room_again(idle: Likewise) -> None:
    # Given
    only = await tenant(idle, "only")
    await add(idle, only, 0, 90)
    with pytest.raises(Overloaded):
        await add(idle, only, 90, 90)
    # When
    while await idle.runtime.worker.step():
        pass
    await idle.runtime.writer.backlog.measure()
    # Then
    await add(idle, only, 90, 90)
    # And the pace is known now
    with pytest.raises(Overloaded) as refused:
        await add(idle, only, 180, 1)
    assert refused.value.retry_after != backlog.RETRY_SECONDS


async def test_texts_that_are_there_already_count_once(idle: Likewise) -> None:
    only = await tenant(idle, "only")
    for _ in range(5):
        await add(idle, only, 0, 40)
