"""Waiting contents become vectors, whatever happens to models, texts, workers and the database on the way."""

import asyncio
import contextlib
import threading
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier

import likewise
from likewise.apps.collections.service import KIND
from likewise.db import collections, lookups, records, waiting
from likewise.db.collections import Generation
from likewise.db.failures import DatabaseFailure
from likewise.db.pool import Pool
from likewise.db.transaction import Tx
from likewise.embedding.embedder import Embedder
from likewise.embedding.provider import Matrix, Provider, ProviderResult, Role
from likewise.embedding.space import PROBE_TEXTS
from likewise.errors import Conflict, Invalid, ModelUnavailable, Unavailable
from likewise.ingest.notifications import Notifications, WakeSignal
from likewise.ingest.worker import Worker
from likewise.ingest.writer import Destination
from likewise.kind import NewRecord
from likewise.library import Likewise
from likewise.settings import Settings
from likewise.testing import DatabaseUrls, FakeProvider, ThrowawayPostgres
from likewise.vectors.admission import Admission
from likewise.vectors.store import TextReading
from likewise.vectors.stores.pgvector import PgvectorStore
from tests.conftest import Opener
from tests.ingest.rows import asked
from tests.ingest.workers import worker_of
from tests.patience import PATIENCE, until

pytestmark = pytest.mark.usefixtures("whole", "soon")

QUEUE = "SELECT content, claim, attempts, alone, run_after <= now(), error FROM waiting ORDER BY content"
MODEL = "minilm-l6-v2"
# For one whose end a test waits for. Whoever is to keep its claim has the long one that workers have by default: a
# busy machine holds up a process for longer than this.
SOON_OVER = timedelta(seconds=0.4)
# As it is where no test shortens it.
FIRST_PAUSE = waiting.FIRST_PAUSE


async def add(lw: Likewise, tenant: int, name: str, texts: Sequence[str]) -> None:
    """Records of these texts, in a collection that is made if need be."""
    with contextlib.suppress(Conflict):
        await lw.collections.create(tenant, name)
    await lw.collections.write(tenant, name, [NewRecord(id=text, text=text) for text in texts])


async def queue(database: DatabaseUrls) -> list[tuple[Any, ...]]:
    return await asked(database, QUEUE)


async def tenants(lw: Likewise, count: int) -> list[int]:
    return [await collections.tenant_named(lw.runtime.pool, f"tenant {n}") for n in range(count)]


# --- models that are away ---------------------------------------------------------------------------------------------


async def test_while_the_model_is_absent_texts_wait_and_words_find(
    settings: Settings, database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    monkeypatch.setattr("likewise.embedding.loading.LOCAL_RETRY_SECONDS", 0.05)
    here = False

    def load(spec: object) -> Provider:
        if not here:
            raise ModelUnavailable("The weights are not here.", code="weights_absent")
        return FakeProvider()

    async with likewise.open(settings, embedder=Embedder(settings, providers={settings.model: load})) as lw:
        notes = lw.collection("notes")
        await notes.add([{"id": str(n), "text": f"pump {n}"} for n in range(20)], wait=False)
        with pytest.raises(ModelUnavailable) as stored:
            await notes.add([{"id": "more", "text": "pump more"}])
        await asyncio.sleep(0.5)
        # Then nothing is claimed, tried, counted or made up
        assert "stored" in stored.value.detail
        assert [row[1:] for row in await queue(database)] == [(None, 0, False, True, None)] * 21
        found = await notes.search("pump 7")
        assert (found.degraded, found.hits[0].id, found.hits[0].found_by) == (("model",), "7", ("lexical",))
        assert found.hits[0].record.vector == "waiting"
        assert found.hits[0].similarity is None
        for asked in ({"mode": "dense"}, {"threshold": 0.1}):
            with pytest.raises(ModelUnavailable):
                await notes.search("pump 7", **asked)
        # When it comes
        here = True
        await asyncio.wait_for(lw.wait_until_embedded("notes"), PATIENCE)
        assert (await notes.search("pump 7")).hits[0].found_by == ("dense", "lexical")


async def test_an_outage_of_the_model_is_no_failed_attempt(
    lw: Likewise, provider: FakeProvider, database: DatabaseUrls
) -> None:
    notes = lw.collection("notes")
    await notes.add([{"id": "warm", "text": "warm"}])
    for outage in (ModelUnavailable("away"), Unavailable("away"), OSError("away")):
        provider.fail = outage
        calls = len(provider.calls)
        await notes.add([{"id": str(type(outage)), "text": f"text {type(outage)}"}], wait=False)
        await until(lambda calls=calls: len(provider.calls) > calls + 6)
        assert [(attempts, alone) for _, _, attempts, alone, _, _ in await queue(database)] == [(0, False)]
        provider.fail = None
        await asyncio.wait_for(lw.wait_until_embedded("notes"), PATIENCE)
    assert (await notes.stats())["failed"] == 0


async def test_a_full_queue_gives_the_claim_back_uncounted(
    settings: Settings, provider: FakeProvider, database: DatabaseUrls
) -> None:
    # Given a queue that somebody else has filled
    few = settings.model_copy(update={"queue_tokens": 1_000})
    embedder = Embedder(few, providers={few.model: lambda spec: provider})
    async with likewise.open(few, embedder=embedder, worker=False) as lw:
        await add(lw, await lw.tenant(), "notes", ["first"])
        await worker_of(lw).step()
        provider.gate = asyncio.Event()
        filling = asyncio.create_task(lw.embed([f"{n} " + "word " * 700 for n in range(3)]))
        await until(lambda: provider.texts[-1].endswith("word "))
        await add(lw, await lw.tenant(), "notes", ["second " * 100, "third " * 100])
        # When
        await worker_of(lw).step()
        # Then
        assert [row[1:4] for row in await queue(database)] == [(None, 0, False)] * 2
        provider.gate.set()
        await filling
        await until(worker_of(lw).step)
        assert (await lw.collection("notes").stats())["vectors"] == 3


# --- texts that fail --------------------------------------------------------------------------------------------------


async def test_a_poisonous_text_fails_alone_after_three_tries(lw: Likewise, provider: FakeProvider) -> None:
    # Given
    provider.poison = lambda text: "poison" in text
    notes = lw.collection("notes")
    good = [{"id": str(n), "text": f"pump {n}"} for n in range(40)]
    bad = [{"id": f"bad {n}", "text": f"poison {n}"} for n in range(2)]
    # When
    await notes.add([*good[:20], bad[0], *good[20:], bad[1]], wait=False)
    await until(lambda: _vectors(lw, 40))
    await asyncio.wait_for(lw.wait_until_embedded("notes"), PATIENCE)
    # Then
    stats = await notes.stats()
    assert (stats["contents"], stats["vectors"], stats["failed"], stats["waiting"]) == (42, 40, 2, 0)
    assert {(await notes.get(record["id"])).vector for record in bad} == {"failed"}
    assert (await notes.search("poison", mode="lexical")).hits[0].record.vector == "failed"
    with pytest.raises(Invalid) as refused:
        await notes.search("poison")
    assert [(fault.pointer, fault.code) for fault in refused.value.faults] == [("/query", "text_failed")]
    # When it is deleted and comes again, it is tried again
    provider.poison = None
    await notes.delete("bad 0")
    await notes.add([bad[0]])
    assert (await notes.get("bad 0")).vector == "ready"


async def test_a_text_that_fails_waits_1_to_60_seconds_for_its_next_try(
    idle: Likewise, provider: FakeProvider, database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given the pauses as they are
    monkeypatch.setattr(waiting, "FIRST_PAUSE", FIRST_PAUSE)
    await idle.embedder.opened()
    provider.poison = lambda text: text == "poison"
    await idle.collection("notes").add([{"id": "a", "text": "poison"}], wait=False)
    for seconds in (1, 4, 16, 60, 60, 60):
        # When it is tried
        ((before,),) = await asked(database, "SELECT now()")
        assert await worker_of(idle, tries=9).step()
        ((again, after),) = await asked(database, "SELECT run_after, now() FROM waiting WHERE claim IS NULL")
        # Then it waits for so long, counted from then
        assert before <= again - timedelta(seconds=seconds) <= after, seconds
        await asked(database, "UPDATE waiting SET run_after = now() RETURNING 1")


async def _vectors(lw: Likewise, count: int) -> bool:
    return bool((await lw.collection("notes").stats())["vectors"] == count)


async def test_a_text_that_fails_now_and_then_gets_its_vector(lw: Likewise, provider: FakeProvider) -> None:
    tries = 0

    def twice(text: str) -> bool:
        nonlocal tries
        tries += text == "moody"
        return text == "moody" and tries <= 2

    provider.poison = twice
    await lw.collection("notes").add([{"id": "a", "text": "moody"}], wait=False)
    await asyncio.wait_for(lw.wait_until_embedded("notes"), PATIENCE)
    assert (await lw.collection("notes").get("a")).vector == "ready"


@pytest.mark.parametrize("knob", ["nan", "wrong_count"])
async def test_answers_that_are_no_vectors_are_never_stored(lw: Likewise, provider: FakeProvider, knob: str) -> None:
    notes = lw.collection("notes")
    await notes.add([{"id": "warm", "text": "warm"}])
    setattr(provider, knob, True)
    await notes.add([{"id": str(n), "text": f"pump {n}"} for n in range(5)], wait=False)
    await asyncio.sleep(0.3)
    assert (await notes.stats())["vectors"] == 1
    setattr(provider, knob, False)
    await asyncio.wait_for(lw.wait_until_embedded("notes"), PATIENCE)
    assert (await notes.stats())["vectors"] == 6


# --- workers that die or are stopped ----------------------------------------------------------------------------------


async def claim(lw: Likewise, *, alone: bool, lease: timedelta = SOON_OVER, most: int = 512) -> list[int]:
    """What a worker that dies at once would claim."""
    entries = await waiting.claim(
        lw.runtime.pool, [MODEL], uuid4(), lease=lease, max_entries=most, after_tenant=0, alone=alone
    )
    return [entry.content for entry in entries]


async def test_what_a_dead_worker_held_is_claimed_alone(idle: Likewise, database: DatabaseUrls) -> None:
    # Given
    await add(idle, await idle.tenant(), "notes", [f"text {n}" for n in range(10)])
    held = await claim(idle, alone=False, lease=timedelta(minutes=1))
    assert len(held) == 10
    assert await waiting.sweep(idle.runtime.pool, 3) == 0
    assert await claim(idle, alone=False) == await claim(idle, alone=True) == []
    # When the lease is over
    await asked(database, "UPDATE waiting SET run_after = now() RETURNING content")
    # Then nobody takes them together, not even before they are swept
    assert await claim(idle, alone=False) == []
    assert await waiting.sweep(idle.runtime.pool, 3) == 10
    assert await claim(idle, alone=False) == []
    assert [len(await claim(idle, alone=True)) for _ in range(11)] == [1] * 10 + [0]
    assert [(attempts, alone) for _, _, attempts, alone, _, _ in await queue(database)] == [(1, True)] * 10


async def test_a_text_that_kills_its_worker_three_times_alone_is_failed(idle: Likewise) -> None:
    notes = idle.collection("notes")
    await add(idle, await idle.tenant(), "notes", ["deadly", "good"])
    await claim(idle, alone=False, lease=timedelta())
    deaths = 0
    async with asyncio.timeout(PATIENCE):
        while (await notes.stats())["failed"] < 2:
            await waiting.sweep(idle.runtime.pool, 3)
            deaths += len(await claim(idle, alone=True, lease=timedelta()))
    assert deaths == 6
    assert {(await notes.get(one)).vector for one in ("deadly", "good")} == {"failed"}


async def test_what_a_dead_worker_held_is_embedded_once_its_lease_is_over(
    idle: Likewise, provider: FakeProvider
) -> None:
    await add(idle, await idle.tenant(), "notes", [f"text {n}" for n in range(30)])
    await claim(idle, alone=False)
    worker = asyncio.create_task(worker_of(idle).run())
    await asyncio.wait_for(idle.wait_until_embedded("notes"), PATIENCE)
    assert [size for size in provider.calls if size != len(PROBE_TEXTS)] == [1] * 30
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)


class Stopped(FakeProvider):
    """Stops its whole process, as far as the process's event loop goes, when it sees a text; its vectors are others."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()
        self.go_on = threading.Event()

    async def embed(self, texts: Sequence[str], role: Role) -> ProviderResult:
        """See Provider.embed."""
        result = await super().embed(texts, role)
        if "text" in texts:
            self.reached.set()
            self.go_on.wait(PATIENCE)
            result.vectors[:] = -result.vectors
        return result


@pytest.mark.parametrize("other_has_finished", [True, False])
async def test_a_worker_that_was_stopped_past_its_lease_writes_nothing(
    idle: Likewise, provider: FakeProvider, settings: Settings, database: DatabaseUrls, other_has_finished: bool
) -> None:
    # Given a worker with an event loop of its own that stops in the model
    await idle.collection("notes").add([{"id": "warm", "text": "warm"}])
    await add(idle, await idle.tenant(), "notes", ["text"])
    stopped = Stopped()

    async def work() -> bool:
        pool = await Pool(database.serving, max_size=2).open()
        embedder = Embedder(settings, providers={settings.model: lambda spec: stopped})
        parts = (
            Admission(pool, embedder),
            PgvectorStore(),
            WakeSignal(Notifications(database.serving)),
            idle.runtime.sealing,
        )
        worker = Worker(pool, embedder, *parts)
        try:
            return await worker.step()
        finally:
            await embedder.close()
            await pool.close()

    process = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(work())))
    await until(stopped.reached.is_set)
    # When its lease is over, and another takes over
    await asked(database, "UPDATE waiting SET run_after = now() RETURNING content")
    provider.gate = asyncio.Event()
    if other_has_finished:
        provider.gate.set()
    other = asyncio.create_task(worker_of(idle).run())
    await until(lambda: "text" in provider.texts)
    if other_has_finished:
        await idle.wait_until_embedded("notes")
    stopped.go_on.set()
    assert await process
    # Then the first has written nothing, and the second's stands
    stats = await idle.collection("notes").stats()
    assert (stats["vectors"], stats["waiting"]) == ((2, 0) if other_has_finished else (1, 1))
    provider.gate.set()
    await asyncio.wait_for(idle.wait_until_embedded("notes"), PATIENCE)
    async with idle.runtime.pool.tenant(await idle.tenant()) as tx:
        collection = await collections.named(tx, "notes")
        record = await lookups.one(tx, collection.id, collection.active.id, "text")
        assert record is not None
        stored = (await PgvectorStore().fetch(tx, collection.active, [record.content]))[record.content]
    own = (await FakeProvider().embed(["text"], "document")).vectors[0]
    assert np.array_equal(stored, own.astype(np.float16))
    other.cancel()
    await asyncio.gather(other, return_exceptions=True)


async def test_a_slow_worker_keeps_its_claim_for_all_its_tenants(
    idle: Likewise, provider: FakeProvider, database: DatabaseUrls
) -> None:
    # Given texts of three tenants in one claim
    everyone = await tenants(idle, 3)
    for tenant in everyone:
        await add(idle, tenant, "notes", ["warm"])
    await worker_of(idle).step()
    for tenant in everyone:
        await add(idle, tenant, "notes", [f"text {tenant}"])
    lease = timedelta(seconds=6)  # renewed in time by a busy process, too
    provider.gate = asyncio.Event()
    step = asyncio.create_task(worker_of(idle, lease=lease).step())
    await until(lambda: any(text.startswith("text") for text in provider.texts))
    begun = await _lease_ends(database)
    # When the first takes longer than the lease

    async def all_are_renewed() -> bool:
        return all(end > first + lease for end, first in zip(await _lease_ends(database), begun, strict=True))

    await until(all_are_renewed)
    # And another looks for what is free
    assert await waiting.sweep(idle.runtime.pool, 3) == 0
    assert not await worker_of(idle).step()
    provider.gate.set()
    assert await step
    # Then each was embedded once
    assert sorted(provider.texts[-3:]) == [f"text {tenant}" for tenant in everyone]
    assert await queue(database) == []


async def _lease_ends(database: DatabaseUrls) -> list[datetime]:
    ends = await asked(database, "SELECT run_after FROM waiting WHERE claim IS NOT NULL ORDER BY content")
    assert len(ends) == 3
    return [end for (end,) in ends]


async def test_a_renewal_keeps_no_row_from_others(idle: Likewise, database: DatabaseUrls) -> None:
    """As of a process that is stopped right after it."""
    await add(idle, await idle.tenant(), "notes", ["text"])
    its = uuid4()
    await waiting.claim(idle.runtime.pool, [MODEL], its, lease=SOON_OVER, max_entries=1, after_tenant=0, alone=False)
    async with idle.runtime.pool.tenant(await idle.tenant()) as tx:
        await waiting.renew(tx, its, timedelta(hours=1))
        rows = await asked(database, "SELECT run_after > now() + interval '59 min' FROM waiting FOR UPDATE NOWAIT")
    assert rows == [(True,)]


async def test_stopping_gives_claims_back_at_once(
    open_likewise: Opener, provider: FakeProvider, database: DatabaseUrls
) -> None:
    async with open_likewise() as lw:
        await lw.collection("notes").add([{"id": "warm", "text": "warm"}])
        provider.gate = asyncio.Event()
        await lw.collection("notes").add([{"id": str(n), "text": f"text {n}"} for n in range(5)], wait=False)
        await until(lambda: any(text.startswith("text") for text in provider.texts))
        assert None not in {row[1] for row in await queue(database)}
    assert [row[1:] for row in await queue(database)] == [(None, 0, False, True, None)] * 5


async def test_a_caller_that_leaves_gives_its_claim_back_at_once(
    idle: Likewise, provider: FakeProvider, database: DatabaseUrls
) -> None:
    notes = idle.collection("notes")
    await notes.add([{"id": "warm", "text": "warm"}])
    provider.gate = asyncio.Event()
    waits = asyncio.create_task(notes.add([{"id": "a", "text": "text"}]))
    await until(lambda: "text" in provider.texts)
    waits.cancel()
    await asyncio.gather(waits, return_exceptions=True)
    assert [row[1:] for row in await queue(database)] == [(None, 0, False, True, None)]
    provider.gate.set()
    assert await worker_of(idle).step()


async def test_claims_whose_rows_the_server_still_holds_are_given_back_when_it_lets_go(
    idle: Likewise, provider: FakeProvider, database: DatabaseUrls
) -> None:
    """As after a statement that was cut off on a server that is slow to end it."""
    # Given
    await idle.collection("notes").add([{"id": "warm", "text": "warm"}], wait=False)
    assert await worker_of(idle).step()
    await add(idle, await idle.tenant(), "notes", [f"text {n}" for n in range(5)])
    provider.gate = asyncio.Event()
    step = asyncio.create_task(worker_of(idle).step())
    await until(lambda: "text 0" in provider.texts)
    # When
    async with await AsyncConnection.connect(database.owner) as holder:
        await holder.execute("SELECT FROM likewise.waiting FOR UPDATE")
        step.cancel()
        await asyncio.sleep(0.2)
        assert {row[1] is None for row in await queue(database)} == {False}
        await holder.rollback()
    await asyncio.gather(step, return_exceptions=True)
    # Then
    assert [row[1:] for row in await queue(database)] == [(None, 0, False, True, None)] * 5


async def test_a_worker_cancelled_at_any_moment_leaves_no_claim(idle: Likewise, database: DatabaseUrls) -> None:
    await add(idle, await idle.tenant(), "notes", [f"text {n}" for n in range(200)])
    step = 0
    while await queue(database):
        task = asyncio.create_task(worker_of(idle, claim_size=20).step())
        await asyncio.sleep(0.0007 * (step % 40))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert {(claim, attempts, alone) for _, claim, attempts, alone, _, _ in await queue(database)} <= {
            (None, 0, False)
        }
        step += 1
        if step > 80:
            await worker_of(idle).step()


# --- tenants in turn --------------------------------------------------------------------------------------------------


async def test_a_flood_of_one_tenant_does_not_starve_another(idle: Likewise, provider: FakeProvider) -> None:
    flooding, quiet = await tenants(idle, 2)
    for start in range(0, 2_000, 500):
        await add(idle, flooding, "notes", [f"flood {n}" for n in range(start, start + 500)])
    await add(idle, quiet, "notes", [f"quiet {n}" for n in range(5)])
    worker = worker_of(idle, claim_size=64)
    for _ in range(2):
        await worker.step()
    assert (await idle.collections.stats(quiet, "notes"))["waiting"] == 0
    assert (await idle.collections.stats(flooding, "notes"))["waiting"] > 1_800


async def test_one_with_fifty_thousand_entries_and_nineteen_with_few(idle: Likewise, database: DatabaseUrls) -> None:
    # Given
    flooding, *others = await tenants(idle, 20)
    for tenant in (flooding, *others):
        await add(idle, tenant, "notes", [f"text {n} of {tenant}" for n in range(3 + tenant % 5)])
    await flood(database, flooding, 50_000)
    worker = worker_of(idle, claim_size=128)
    # When
    await worker.step()
    # Then all of the others' are done, and what they left of their shares went to the one with many
    waiting_in = {tenant: (await idle.collections.stats(tenant, "notes"))["waiting"] for tenant in (flooding, *others)}
    assert {waiting_in[tenant] for tenant in others} == {0}
    done = 50_000 + sum(3 + tenant % 5 for tenant in (flooding, *others)) - waiting_in[flooding]
    assert done == 128
    await drop(idle, flooding)


async def flood(database: DatabaseUrls, tenant: int, count: int, model: str = MODEL) -> None:
    """So many texts that wait, without the time it takes to store them."""
    async with await AsyncConnection.connect(database.owner, autocommit=True) as connection:
        await connection.execute("SET search_path = likewise")
        await connection.execute("UPDATE generations SET model = %s WHERE tenant = %s", [model, tenant])
        await connection.execute(
            """
            WITH added AS (
                INSERT INTO contents (tenant, collection, text_hash, text, chars)
                SELECT g.tenant, g.collection, sha256(n::text::bytea), n::text, 5
                FROM generations g CROSS JOIN generate_series(1, %s) AS n WHERE g.tenant = %s RETURNING pk
            )
            INSERT INTO waiting (tenant, generation, content, lane, tokens)
            SELECT g.tenant, g.id, pk, 1, 1 FROM added CROSS JOIN generations g WHERE g.tenant = %s
            """,
            [count, tenant, tenant],
        )


async def drop(lw: Likewise, tenant: int) -> None:
    await lw.collections.drop(tenant, "notes")


async def test_what_waits_for_a_model_that_is_away_is_not_read_at_each_claim(
    idle: Likewise, database: DatabaseUrls
) -> None:
    # Given
    absent, other = await tenants(idle, 2)
    for tenant in (absent, other):
        await add(idle, tenant, "notes", ["text"])
    await flood(database, absent, 20_000, model="elsewhere")
    async with await AsyncConnection.connect(database.owner, autocommit=True) as connection:
        await connection.execute("SET search_path = likewise")
        # When
        await connection.execute("SELECT pg_stat_force_next_flush()")
        before = await _read(connection)
        assert await claim(idle, alone=False) != []
        # Then
        assert await _read(connection) - before < 100
    await drop(idle, absent)


async def _read(connection: AsyncConnection[Any]) -> int:
    """How many entries have been read of the queue's table and its index of turns."""
    await asyncio.sleep(0.05)
    statement = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'waiting_turn'"
    row = await (await connection.execute(statement)).fetchone()
    assert row is not None
    return int(row[0])


async def test_interactive_texts_come_before_bulk_ones(idle: Likewise, provider: FakeProvider) -> None:
    tenant = await idle.tenant()
    await add(idle, tenant, "notes", [f"bulk {n}" for n in range(100)])
    batch = [NewRecord(id="now", text="now")]
    await idle.runtime.writer.write(tenant, Destination("notes", KIND), batch, lane=records.INTERACTIVE)
    await worker_of(idle, claim_size=10).step()
    assert (await idle.collection("notes").get("now")).vector == "ready"


async def test_more_tenants_than_a_claim_takes_are_served_in_turn(idle: Likewise) -> None:
    many = await tenants(idle, 40)
    for tenant in many:
        await add(idle, tenant, "notes", [f"text {n}" for n in range(3)])
    worker = worker_of(idle, claim_size=32)
    served: set[int] = set()
    for _ in range(2):
        await worker.step()
        served |= {tenant for tenant in many if (await idle.collections.stats(tenant, "notes"))["waiting"] < 3}
    assert served == set(many)


async def test_tenants_whose_model_is_away_take_nobodys_turn(idle: Likewise, database: DatabaseUrls) -> None:
    # Given forty tenants that wait for a model that is not here, and one that waits for ours
    *many, last = await tenants(idle, 41)
    for tenant in many:
        await add(idle, tenant, "notes", ["text"])
    async with await AsyncConnection.connect(database.owner, autocommit=True) as connection:
        await connection.execute("UPDATE likewise.generations SET model = 'elsewhere'")
    await add(idle, last, "notes", ["text"])
    # When
    assert await worker_of(idle).step()
    # Then
    assert (await idle.collections.stats(last, "notes"))["vectors"] == 1


class Refusing(PgvectorStore):
    """Refuses one generation's vectors."""

    def __init__(self, refused: int) -> None:
        self.refused = refused

    async def upsert(
        self, tx: Tx, generation: Generation, ids: Sequence[int], vectors: Matrix, readings: Sequence[TextReading]
    ) -> None:
        """See VectorStore.upsert."""
        if generation.id == self.refused:
            raise DatabaseFailure("XX000")
        await super().upsert(tx, generation, ids, vectors, readings)


async def test_the_fault_of_one_collection_is_not_the_others(idle: Likewise, database: DatabaseUrls) -> None:
    first, second, third = await tenants(idle, 3)
    for tenant in (first, second, third):
        await add(idle, tenant, "notes", ["text"])
    async with idle.runtime.pool.tenant(second) as tx:
        refused = (await collections.named(tx, "notes")).active.id
    assert await worker_of(idle, store=Refusing(refused)).step()
    vectors = [(await idle.collections.stats(tenant, "notes"))["vectors"] for tenant in (first, second, third)]
    assert vectors == [1, 0, 1]
    assert [row[1:4] for row in await queue(database)] == [(None, 0, False)]


# --- a database that is away ------------------------------------------------------------------------------------------


class Interrupted(PgvectorStore):
    """Loses the database, once, between taking entries and writing their vectors."""

    def __init__(self, postgres: ThrowawayPostgres, url: str) -> None:
        self.superuser = postgres.server.superuser_url()
        self.database = str(conninfo_to_dict(url)["dbname"])
        self.happened = False

    async def upsert(
        self, tx: Tx, generation: Generation, ids: Sequence[int], vectors: Matrix, readings: Sequence[TextReading]
    ) -> None:
        """See VectorStore.upsert."""
        if not self.happened:
            self.happened = True
            await self._allow("false")
            asyncio.get_running_loop().call_later(1.0, lambda: asyncio.ensure_future(self._allow("true")))
        await super().upsert(tx, generation, ids, vectors, readings)

    async def _allow(self, allowed: str) -> None:
        async with await AsyncConnection.connect(self.superuser, autocommit=True) as connection:
            statement = SQL("ALTER DATABASE {} ALLOW_CONNECTIONS " + allowed)  # type: ignore[arg-type]
            await connection.execute(statement.format(Identifier(self.database)))
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [self.database]
            )


async def test_an_outage_of_the_database_while_vectors_are_written_costs_nothing(
    idle: Likewise, provider: FakeProvider, postgres: ThrowawayPostgres, database: DatabaseUrls
) -> None:
    # Given
    await add(idle, await idle.tenant(), "notes", [f"text {n}" for n in range(50)])
    store = Interrupted(postgres, database.serving)
    # When
    await worker_of(idle, store=store).step()
    # Then
    assert store.happened
    stats = await idle.collection("notes").stats()
    assert (stats["vectors"], stats["waiting"]) == (50, 0)
    assert provider.texts.count("text 7") == 1
