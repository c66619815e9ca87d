"""Many records deleted at once: nothing of theirs is left, and nothing of others goes."""

import asyncio
import random

import pytest

from likewise.apps.collections.service import KIND
from likewise.db import collections, records
from likewise.ingest.batch import prepare
from likewise.kind import NewRecord, Policy
from likewise.library import Likewise
from likewise.testing import DatabaseUrls
from tests.conftest import Opener
from tests.ingest.notes import made
from tests.ingest.rows import asked
from tests.patience import PATIENCE, until

pytestmark = pytest.mark.usefixtures("whole")

LEFT = """
    SELECT (SELECT count(*) FROM records), (SELECT count(*) FROM contents), (SELECT count(*) FROM waiting),
           (SELECT count(*) FROM record_fields)
"""


def batch(count: int, parent: str, text: str = "text") -> list[NewRecord]:
    return [
        NewRecord(id=f"{parent} {n}", text=f"{text} {n}", parent=parent, payload={"n": n, "of": parent})
        for n in range(count)
    ]


@pytest.mark.parametrize("kept", [True, False])
async def test_a_parent_goes_with_all_that_hangs_on_it_alone(
    idle: Likewise, database: DatabaseUrls, kept: bool
) -> None:
    # Given two parents that share some texts; some have their vectors, some wait
    collection = await made(idle, Policy(indexed=("n", "of"), keep_text=kept))
    notes = idle.collection("notes")
    await notes.add(batch(30, "a"), wait=kept)
    await notes.add(batch(20, "b"), wait=False)
    await notes.add([NewRecord(id="c", text="text 25")], wait=False)
    # When
    assert await idle.runtime.writer.delete_parent(collection.tenant, collection, "a") == 30
    # Then
    waiting = 0 if kept else 21
    assert await asked(database, LEFT) == [(21, 21, waiting, 40)]
    assert (await notes.stats())["records"] == 21
    assert await idle.runtime.writer.delete_parent(collection.tenant, collection, "a") == 0
    assert await idle.runtime.writer.delete_parent(collection.tenant, collection, "no\0ne") == 0
    assert await idle.runtime.writer.delete_parent(collection.tenant, collection, "b") == 20
    assert await asked(database, LEFT) == [(1, 1, waiting // 21, 0)]


async def test_those_that_are_there_go_and_the_others_are_no_error(idle: Likewise, database: DatabaseUrls) -> None:
    collection = await made(idle)
    await idle.collection("notes").add(batch(5, "a"), wait=False)
    writer, tenant = idle.runtime.writer, collection.tenant
    assert await writer.delete_many(tenant, collection, ["a 1", "a 1", "a 3", "none", "\0", "\ud800"]) == 2
    assert await writer.delete_many(tenant, collection, []) == 0
    assert await writer.delete(tenant, collection, "a 0")
    assert not await writer.delete(tenant, collection, "a 0")
    assert await asked(database, "SELECT id FROM records ORDER BY id") == [("a 2",), ("a 4",)]


async def test_another_tenants_records_of_the_same_parent_stay(idle: Likewise, database: DatabaseUrls) -> None:
    collection = await made(idle)
    other = await collections.tenant_named(idle.runtime.pool, "other")
    await idle.collections.create(other, "notes")
    await idle.collections.write(other, "notes", batch(3, "a"), wait=False)
    writer = idle.runtime.writer
    # Even where somebody mixes them up
    assert await writer.delete_parent(other, collection, "a") == 0
    assert await writer.delete_parent(collection.tenant, collection, "a") == 0
    assert (await idle.collections.stats(other, "notes"))["records"] == 3


@pytest.mark.parametrize("by_field", [False, True])
async def test_a_record_that_moves_away_meanwhile_is_not_deleted(
    idle: Likewise, database: DatabaseUrls, by_field: bool
) -> None:
    # Given two records of a parent, and a write under way that gives one of them another
    collection = await made(idle, Policy(indexed=("of",)))
    await idle.collection("notes").add(batch(2, "a"), wait=False)
    writer, tenant = idle.runtime.writer, collection.tenant
    moved = prepare(KIND, NewRecord(id="a 0", text="text 0", parent="b", payload={"n": 0, "of": "b"}))
    policy = records.StoragePolicy(collection.views, indexed=("of",))
    async with idle.runtime.pool.tenant(tenant) as tx:
        await records.write(
            tx, collection.id, await records.compare(tx, collection.id, [moved]), policy, lane=records.BULK
        )
        # When those of the old one are deleted
        deleting = asyncio.create_task(
            writer.delete_with(tenant, collection, "of", "a")
            if by_field
            else writer.delete_parent(tenant, collection, "a")
        )
        await until(lambda: _waits_for_a_lock(database))
    # Then what is of the new one by then stays
    assert await deleting == 1
    assert await asked(database, "SELECT id, parent FROM records") == [("a 0", "b")]
    assert await asked(database, LEFT) == [(1, 1, 1, 1)]


async def _waits_for_a_lock(database: DatabaseUrls) -> bool:
    return await asked(database, "SELECT count(*) FROM pg_locks WHERE NOT granted") == [(1,)]


async def test_deleting_and_writing_the_same_at_once_leaves_the_rows_whole(open_likewise: Opener) -> None:
    chance = random.Random(4)
    async with open_likewise() as here, open_likewise() as there:
        collection = await made(here, Policy(indexed=("n",)))

        async def write(lw: Likewise, text: str) -> None:
            for _ in range(8):
                await lw.collection("notes").add(batch(60, chance.choice("ab"), text), wait=False)
                await asyncio.sleep(chance.uniform(0, 0.01))

        async def delete(lw: Likewise) -> None:
            for _ in range(12):
                await lw.runtime.writer.delete_parent(collection.tenant, collection, chance.choice("ab"))
                ids = [f"{chance.choice('ab')} {n}" for n in chance.sample(range(60), 20)]
                await lw.runtime.writer.delete_many(collection.tenant, collection, ids)
                await asyncio.sleep(chance.uniform(0, 0.01))

        await asyncio.gather(write(here, "x"), write(there, "x"), write(there, "y"), delete(here), delete(there))
        async with asyncio.timeout(PATIENCE):
            await here.wait_until_embedded("notes")
        stats = await here.collection("notes").stats()
        assert stats["vectors"] == stats["contents"]
