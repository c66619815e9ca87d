"""Many at once: whatever the order, the rows are whole, no vector is wrong, and nobody hears of a deadlock."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from psycopg.sql import SQL

import likewise
from likewise.apps.collections.service import KIND
from likewise.db import collections, records
from likewise.db.transaction import Tx, table
from likewise.embedding.embedder import Embedder
from likewise.errors import Conflict, NotFound, Unavailable
from likewise.ingest.batch import prepare
from likewise.kind import NewRecord, Policy
from likewise.library import Likewise
from likewise.search.options import Mode
from likewise.settings import Settings
from likewise.testing import DatabaseUrls, FakeProvider
from tests.conftest import Opener
from tests.flows.invariants import broken
from tests.patience import PATIENCE, until

MAKE_GENERATION = SQL("SELECT make_generation(%s, %s::smallint, %s, %s, %s, %s)")

pytestmark = pytest.mark.usefixtures("whole")

WORDS = "pump valve cold hot leak seal motor bearing noise stops fails slowly again never at night".split()


def text(chance: random.Random) -> str:
    return " ".join(chance.choices(WORDS, k=6))


async def jitter(most: float = 0.004) -> None:
    await asyncio.sleep(random.uniform(0, most))


async def embedded(lw: Likewise, *names: str) -> None:
    async with asyncio.timeout(PATIENCE):
        for name in names:
            await lw.wait_until_embedded(name)


async def test_three_writers_of_the_same_512_ids_in_three_orders(lw: Likewise) -> None:
    # Given
    notes = lw.collection("notes")
    await notes.create(policy=Policy(indexed=("by",)))
    ids = [f"id {n}" for n in range(512)]
    orders = [ids, ids[::-1], random.Random(1).sample(ids, len(ids))]

    async def write(writer: int, order: list[str], size: int) -> None:
        for start in range(0, len(order), size):
            batch = [
                {"id": one, "text": f"{one} by {writer}", "payload": {"by": writer}}
                for one in order[start : start + size]
            ]
            await notes.add(batch, wait=False)
            await jitter()

    # When
    for size in (512, 64, 23):
        await asyncio.gather(*(write(writer, order, size) for writer, order in enumerate(orders)))
    # Then
    await embedded(lw, "notes")
    stats = await notes.stats()
    assert (stats["records"], stats["contents"], stats["vectors"]) == (512, 512, 512)
    for one in ids[::37]:
        record = await notes.get(one)
        assert record.text == f"{one} by {record.payload['by']}"


async def test_many_writers_of_a_few_hot_ids(lw: Likewise) -> None:
    notes = lw.collection("notes")
    await notes.create()
    ids = [str(n) for n in range(12)]

    async def write(writer: int) -> None:
        chance = random.Random(writer)
        for _ in range(12):
            some = chance.sample(ids, 6)
            await notes.add([{"id": one, "text": text(chance)} for one in some], wait=False)

    await asyncio.gather(*(write(writer) for writer in range(16)))
    await embedded(lw, "notes")
    assert (await notes.stats())["records"] == 12


async def test_ids_that_are_new_to_one_writer_and_known_to_another(lw: Likewise) -> None:
    """One changes b and adds a, while another, who came before b was there, adds both."""
    notes = lw.collection("notes")
    await notes.create()

    async def know(n: int) -> None:
        await notes.add([{"id": f"b{n}", "text": f"first {n}"}], wait=False)
        await notes.add([{"id": f"a{n}", "text": f"new {n}"}, {"id": f"b{n}", "text": f"second {n}"}], wait=False)

    async def come(n: int) -> None:
        await notes.add([{"id": f"a{n}", "text": f"other {n}"}, {"id": f"b{n}", "text": f"another {n}"}], wait=False)

    for start in range(0, 200, 10):
        await asyncio.gather(*(one(n) for n in range(start, start + 10) for one in (know, come)))
    await embedded(lw, "notes")
    assert (await notes.stats())["records"] == 400


async def test_records_with_few_texts_come_go_and_change_at_once(lw: Likewise) -> None:
    """Every content is somebody's last all the time."""
    notes = lw.collection("notes")
    await notes.create(policy=Policy(indexed=("n", "tags")))

    async def churn(writer: int) -> None:
        chance = random.Random(writer)
        for _ in range(40):
            ids = chance.sample(range(20), 3)
            if chance.random() < 0.4:
                for one in ids:
                    with contextlib.suppress(NotFound):
                        await notes.delete(str(one))
            else:
                payload = {"n": chance.randrange(5), "tags": chance.sample("abc", 2)}
                batch = [{"id": str(one), "text": chance.choice(WORDS[:4]), "payload": payload} for one in ids]
                await notes.add(batch, wait=chance.random() < 0.3)
            await jitter(0.002)

    await asyncio.gather(*(churn(writer) for writer in range(8)))
    await embedded(lw, "notes")


async def test_records_of_shared_texts_are_changed_at_once(lw: Likewise) -> None:
    """Who changes a record keeps nobody waiting who only refers to the same text, new or old."""
    # Given a text that two records have, and one that a third leaves for it
    notes = lw.collection("notes")
    await notes.add([{"id": one, "text": "shared"} for one in "ab"] + [{"id": "c", "text": "left"}], wait=False)
    tenant = await lw.tenant()
    collection = await lw.runtime.recent.get(tenant, "notes")
    ours = [prepare(KIND, NewRecord(id=one, text="shared", payload={"n": 1})) for one in "ac"]
    # When one write has changed its records and is not committed yet
    async with lw.runtime.pool.tenant(tenant) as tx:
        diff = await records.compare(tx, collection.id, ours)
        await records.write(tx, collection.id, diff, records.StoragePolicy(collection.views), lane=records.BULK)
        # Then others do not wait for it
        async with asyncio.timeout(PATIENCE):
            changed = await notes.add([{"id": "b", "text": "shared", "payload": {"n": 2}}], wait=False)
            added = await notes.add([{"id": "d", "text": "shared"}, {"id": "e", "text": "other"}], wait=False)
            moved = await notes.add([{"id": "e", "text": "shared"}], wait=False)
    assert (changed.changed, added.created, moved.changed) == (1, 2, 1)
    assert (await notes.stats())["contents"] == 1
    await embedded(lw, "notes")


async def test_changes_moves_and_deletions_of_records_with_shared_texts_race(lw: Likewise) -> None:
    """No text is lost that a record has, and none is left over; each batch locks its texts as strongly as it must."""
    # Given
    notes = lw.collection("notes")
    await notes.create(policy=Policy(indexed=("n",)))
    stored = [{"id": f"{writer} {n}", "text": WORDS[n % 6]} for writer in range(6) for n in range(12)]
    await notes.add(stored, wait=False)

    async def churn(writer: int) -> None:
        chance = random.Random(writer)
        for _ in range(30):
            ids = [f"{chance.choice((writer, 0))} {n}" for n in chance.sample(range(12), 5)]
            batch = [{"id": one, "text": chance.choice(WORDS[:6]), "payload": {"n": chance.random()}} for one in ids]
            if chance.random() < 0.6:
                # What most batches of spans do: other facts beside the text that is there.
                batch = [one | {"text": WORDS[int(one["id"].split()[1]) % 6]} for one in batch]
            elif chance.random() < 0.3:
                await lw.runtime.writer.delete_many(tenant, collection, ids)
                continue
            await notes.add(batch, wait=False)

    # When
    tenant = await lw.tenant()
    collection = await lw.runtime.recent.get(tenant, "notes")
    await asyncio.gather(*(churn(writer) for writer in range(6)))
    # Then
    await embedded(lw, "notes")
    stats = await notes.stats()
    assert stats["contents"] == stats["vectors"] <= 6


async def test_a_text_is_written_while_another_deletes_its_last_record(lw: Likewise) -> None:
    notes = lw.collection("notes")
    for round_ in range(25):
        await notes.add([{"id": "old", "text": f"shared {round_ % 3}"}], wait=round_ % 2 == 0)

        async def later(work: Awaitable[Any]) -> None:
            await jitter(0.003)
            await work

        await asyncio.gather(
            later(notes.delete("old")), later(notes.add([{"id": "new", "text": f"shared {round_ % 3}"}], wait=False))
        )
        assert (await notes.get("new")).text == f"shared {round_ % 3}"
        assert (await notes.stats())["contents"] == 1
    await embedded(lw, "notes")
    assert (await notes.stats())["vectors"] == 1


async def test_a_record_deleted_while_its_text_is_in_the_model_stays_deleted(
    lw: Likewise, provider: FakeProvider
) -> None:
    # Given
    notes = lw.collection("notes")
    await notes.add([{"id": "warm", "text": "warm"}])
    for one in ("alpha 1", "alpha 2", "alpha 3"):
        provider.gate = asyncio.Event()
        await notes.add([{"id": "a", "text": one}, {"id": "b", "text": f"{one} too"}], wait=False)
        await until(lambda one=one: one in provider.texts)
        # When
        await notes.delete("a")
        provider.gate.set()
        await embedded(lw, "notes")
        # Then
        stats = await notes.stats()
        assert (stats["records"], stats["contents"], stats["vectors"]) == (2, 2, 2)
        found = await notes.search(one, mode="dense")
        assert "a" not in {hit.id for hit in found.hits}
        await notes.delete("b")


async def test_a_record_deleted_in_the_model_and_added_again_has_its_vector(
    lw: Likewise, provider: FakeProvider
) -> None:
    notes = lw.collection("notes")
    await notes.add([{"id": "warm", "text": "warm"}])
    provider.gate = asyncio.Event()
    await notes.add([{"id": "a", "text": "alpha"}], wait=False)
    await until(lambda: "alpha" in provider.texts)
    await notes.delete("a")
    await notes.add([{"id": "a", "text": "alpha"}], wait=False)
    provider.gate.set()
    await embedded(lw, "notes")
    assert (await notes.get("a")).vector == "ready"


async def test_a_text_set_to_a_then_b_then_a(lw: Likewise, provider: FakeProvider) -> None:
    notes = lw.collection("notes")
    await notes.create()
    chance = random.Random(3)
    for _ in range(12):
        provider.delay = chance.choice([0, 0.01])
        for one in ("text A", "text B", "text A"):
            await notes.add([{"id": "x", "text": one}], wait=chance.random() < 0.3)
            await jitter(0.01)
        await embedded(lw, "notes")
        hit = (await notes.search("text A", mode="dense")).hits[0]
        assert (hit.record.text, hit.record.vector) == ("text A", "ready")
        assert hit.similarity == pytest.approx(1, abs=1e-3)
        assert (await notes.stats())["contents"] == 1


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
async def test_texts_replaced_while_searches_run(lw: Likewise, provider: FakeProvider, mode: str) -> None:
    """Each hit shows one moment: its similarity is that of the text beside it."""
    # Given
    notes = lw.collection("notes")
    chance = random.Random(4)
    await notes.add([{"id": str(n), "text": f"{text(chance)} pump"} for n in range(40)])
    query = "pump fails at night"
    done = asyncio.Event()
    seen: dict[str, float | None] = {}

    async def replace() -> None:
        for _ in range(40):
            some = chance.sample(range(40), 5)
            await notes.add([{"id": str(n), "text": f"{text(chance)} pump"} for n in some], wait=False)
            await jitter()
        done.set()

    async def search() -> None:
        while not done.is_set():
            hits = (await notes.search(query, mode=mode, limit=20)).hits
            # What has no vector yet is no hit by meaning; at most all texts of some writes are on their way.
            assert len(hits) == 20 or mode == "dense"
            assert len({hit.id for hit in hits}) == len(hits)
            seen.update({hit.record.text or "": hit.similarity for hit in hits if hit.similarity is not None})

    # When
    await asyncio.gather(replace(), search(), search())
    await embedded(lw, "notes")
    # Then
    if mode != "lexical":
        vectors = (await FakeProvider().embed([query, *seen], "query")).vectors
        assert len(seen) > 40
        np.testing.assert_allclose(vectors[1:] @ vectors[0], list(seen.values()), atol=2e-3)


async def test_a_generation_made_while_records_arrive(lw: Likewise, database: DatabaseUrls) -> None:
    """Every content gets its vector in each generation, whichever came first."""
    # Given
    notes = lw.collection("notes")
    await notes.create()
    tenant = await lw.tenant()
    async with lw.runtime.pool.tenant(tenant) as tx:
        collection = await collections.named(tx, "notes")
    made: list[int] = []

    async def write(writer: int) -> None:
        chance = random.Random(writer)
        for _ in range(15):
            batch = [{"id": f"{writer} {n}", "text": text(chance)} for n in chance.sample(range(20), 8)]
            await notes.add(batch, wait=False)
            await jitter()

    async def make() -> None:
        for _ in range(3):
            await asyncio.sleep(random.uniform(0.02, 0.1))
            async with lw.runtime.pool.tenant(tenant) as tx:
                values = [collection.id, 0, collection.active.model, collection.active.dimension, "building", None]
                row = await tx.row(MAKE_GENERATION, values)
                await jitter()
            assert row is not None
            made.append(row[0])

    # When
    await asyncio.gather(*(write(writer) for writer in range(5)), make())
    # Then
    assert await broken(database.owner, FakeProvider()) == {}
    await until(lambda: _nothing_waits(lw, tenant))
    contents = (await notes.stats())["contents"]
    async with lw.runtime.pool.tenant(tenant) as tx:
        assert [await _count(tx, generation) for generation in [collection.active.id, *made]] == [contents] * 4


async def _nothing_waits(lw: Likewise, tenant: int) -> bool:
    async with lw.runtime.pool.tenant(tenant) as tx:
        return await tx.row(SQL("SELECT 1 FROM waiting LIMIT 1")) is None


async def _count(tx: Tx, generation: int) -> int:
    return (await tx.rows(SQL("SELECT count(*) FROM {}").format(table("vec", generation))))[0][0]


async def test_two_workers_share_a_queue_and_embed_nothing_twice(
    open_likewise: Opener, provider: FakeProvider, settings: Settings
) -> None:
    # Given
    def texts_of(one: FakeProvider) -> list[str]:
        return [text for text in one.texts if text.startswith("text ")]

    others = FakeProvider()
    embedder = Embedder(settings, providers={settings.model: lambda spec: others})
    # So slow that both are at work at once, on all but the busiest machine.
    provider.delay = others.delay = 0.2
    async with open_likewise(worker=False) as writing, open_likewise(), open_likewise(embedder=embedder):
        notes = writing.collection("notes")
        # When
        await notes.add([{"id": str(n), "text": f"text {n}"} for n in range(2_000)], wait=False)
        await embedded(writing, "notes")
        # Then
        assert (await notes.stats())["vectors"] == 2_000
        assert sorted(texts_of(provider) + texts_of(others)) == sorted(f"text {n}" for n in range(2_000))


@pytest.mark.parametrize("with_terms", [True, False])
async def test_a_collection_dropped_while_it_is_written_searched_and_embedded(lw: Likewise, with_terms: bool) -> None:
    """Everybody gets an answer, or hears that it is gone."""
    # Given
    tenant = await lw.tenant()
    service = lw.collections
    done = asyncio.Event()
    chance = random.Random(6)

    async def again(work: Callable[[], Awaitable[Any]]) -> int:
        gone = 0
        while not done.is_set():
            try:
                await work()
            except NotFound:
                gone += 1
            await jitter()
        return gone

    def batch() -> list[NewRecord]:
        ids = chance.sample(range(50), 3)
        return [NewRecord(id=str(one), text=text(chance), payload={"n": one}) for one in ids]

    async def search() -> None:
        mode: Mode = chance.choice(["hybrid", "dense", "lexical"] if with_terms else ["hybrid", "dense"])
        filters = chance.choice([None, {"id": {"$gte": "2"}}])
        await lw.collection("notes").search("pump fails", mode=mode, filters=filters)

    async def drop() -> None:
        for _ in range(20):
            policy = Policy(keep_terms=with_terms, indexed=("n",))
            await lw.collection("notes").create(policy=policy)
            await asyncio.sleep(chance.uniform(0, 0.15))
            await lw.collection("notes").drop()
        done.set()

    # When
    outcomes = await asyncio.gather(
        drop(),
        *(again(lambda: service.write(tenant, "notes", batch())) for _ in range(3)),
        again(lambda: service.write(tenant, "notes", batch(), wait=True)),
        *(again(search) for _ in range(3)),
        again(lambda: service.stats(tenant, "notes")),
        again(lambda: service.record(tenant, "notes", str(chance.randrange(50)))),
        again(lambda: service.delete(tenant, "notes", str(chance.randrange(50)))),
    )
    # Then
    assert all(outcomes[1:])


async def test_two_make_and_drop_one_collection(lw: Likewise) -> None:
    async def churn() -> None:
        for _ in range(25):
            with contextlib.suppress(Conflict):
                await lw.collection("notes").create()
            with contextlib.suppress(NotFound):
                await lw.collection("notes").drop()

    await asyncio.gather(churn(), churn(), churn())


async def test_callers_that_leave_at_any_moment_leave_nothing_behind(lw: Likewise) -> None:
    """Cancelled writes are whole or absent, the connections are clean, and no claim waits for its lease."""
    # Given
    notes = lw.collection("notes")
    await notes.create()
    chance = random.Random(7)

    async def one(n: int) -> None:
        batch = [{"id": f"{n} {m}", "text": f"{text(chance)} {n}"} for m in range(20)]
        match n % 4:
            case 0 | 1 as wait:
                await notes.add(batch, wait=wait == 0)
            case 2:
                await notes.search("pump", limit=20)
            case _:
                await notes.add([{"id": "hot", "text": text(chance)}])

    async def leave(n: int) -> None:
        task = asyncio.create_task(one(n))
        await asyncio.sleep(chance.uniform(0, 0.06))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    # When
    for start in range(0, 240, 12):
        await asyncio.gather(*(leave(n) for n in range(start, start + 12)))

    # Then, once small writes that share a transaction are through, which goes on without their callers
    async def all_have_vectors() -> bool:
        stats = await notes.stats()
        return bool(stats["vectors"] == stats["contents"] and stats["records"] % 20 in (0, 1))

    await until(all_have_vectors)
    # Connections that were lost would be missed now.
    await asyncio.gather(*(notes.search("pump") for _ in range(lw.settings.database_connections)))


async def test_closing_while_everything_is_busy(settings: Settings, provider: FakeProvider) -> None:
    """However busy: closing ends, and whoever comes too late hears so."""
    chance = random.Random(8)
    for round_ in range(15):
        embedder = Embedder(settings, providers={settings.model: lambda spec: provider})
        few = settings.model_copy(update={"database_connections": 2})
        async with likewise.open(few, embedder=embedder) as lw:
            notes = lw.collection("notes")
            batches = [[{"id": f"{round_} {m} {k}", "text": f"{round_} {m} {k}"} for k in range(3)] for m in range(12)]
            tasks = [asyncio.create_task(notes.add(batch, wait=False)) for batch in batches]
            await asyncio.sleep(chance.uniform(0.0, 0.1))
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert not isinstance(outcome, BaseException) or isinstance(outcome, Unavailable), outcome
