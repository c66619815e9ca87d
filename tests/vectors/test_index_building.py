"""Indexes are built beside everything else."""

import asyncio
import random

import pytest
from psycopg import AsyncConnection

from likewise.db.maintenance import Maintenance
from likewise.errors import NotFound
from likewise.library import Likewise
from likewise.testing import DatabaseUrls, FakeProvider
from tests.flows.invariants import broken

WORDS = "pump valve cold hot leak seal motor bearing noise stops fails slowly again never".split()


async def fill(lw: Likewise, database: DatabaseUrls, count: int) -> None:
    chance = random.Random(count)
    records = [{"id": str(n), "text": f"{' '.join(chance.choices(WORDS, k=4))} {n}"} for n in range(count)]
    await lw.collection("notes").add(records)
    async with await AsyncConnection.connect(database.owner, autocommit=True) as owner:
        await owner.execute("ANALYZE")


@pytest.mark.parametrize("head_start", [0.0, 0.02, 0.1])
async def test_a_collection_dropped_while_its_index_is_built_is_gone_whole(
    lw: Likewise, database: DatabaseUrls, head_start: float
) -> None:
    # Given
    await fill(lw, database, 1_200)
    building = asyncio.create_task(Maintenance(database.owner, max_scanned=1).step())
    await asyncio.sleep(head_start)
    # When
    await lw.collection("notes").drop()
    # Then
    await building
    with pytest.raises(NotFound):
        await lw.collection("notes").search("pump")
    assert await broken(database.owner) == {}
    await Maintenance(database.owner, max_scanned=1).step()


async def test_records_come_go_and_are_found_while_the_index_is_built(
    lw: Likewise, database: DatabaseUrls, provider: FakeProvider
) -> None:
    # Given
    await fill(lw, database, 1_200)
    notes = lw.collection("notes")
    building = asyncio.create_task(Maintenance(database.owner, max_scanned=1).step())
    # When
    n = 0
    while not building.done() or n < 5:
        n += 1
        await notes.add([{"id": f"new {n}", "text": f"something new {n}"}])
        await notes.delete(str(n))
        found = await notes.search(f"something new {n}", mode="dense", limit=20)
        assert len(found.hits) == 20
        assert found.hits[0].id == f"new {n}"
    await building
    # Then
    assert (await notes.stats())["index"] == "hnsw"
    found = await notes.search("something new 1", mode="dense", limit=n)
    assert found.hits[0].id == "new 1"
    assert await broken(database.owner, provider) == {}
