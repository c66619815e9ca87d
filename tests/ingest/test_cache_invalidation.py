"""A text that went with its last record is in no cache any more: not here, not in other processes, not in Redis."""

import asyncio
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection

import likewise
from likewise.apps.collections.service import KIND
from likewise.db import collections
from likewise.embedding.cache import Tombstones
from likewise.embedding.embedder import Embedder
from likewise.errors import Invalid
from likewise.ingest import cache_invalidation
from likewise.ingest.cache_invalidation import notice_sealing
from likewise.ingest.unit_of_work import UnitOfWork, store
from likewise.ingest.writer import Destination
from likewise.kind import NewRecord, Policy
from likewise.library import Likewise
from likewise.sealing import Sealing
from likewise.settings import Settings
from likewise.testing import DatabaseUrls, FakeProvider, ThrowawayPostgres
from likewise.testing.redis import RedisProcess
from tests.conftest import Opener
from tests.ingest.notes import made
from tests.ingest.workers import worker_of
from tests.patience import PATIENCE, until

pytestmark = pytest.mark.usefixtures("whole")

LISTENERS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"


async def known(lw: Likewise, text: str, tenant: int | None = None) -> bool:
    """Whether a text was known; it is from then on."""
    embedded = await lw.embedder.embed(tenant or await lw.tenant(), [text])
    return bool(embedded.cached.all())


@asynccontextmanager
async def with_redis(settings: Settings, provider: FakeProvider, redis: RedisProcess, **options: Any) -> Any:
    changed = settings.model_copy(update={"redis_url": redis.url, **options})
    embedder = Embedder(changed, providers={settings.model: lambda spec: provider})
    async with likewise.open(changed, worker=False, embedder=embedder) as lw:
        yield lw


async def keys_in(redis: RedisProcess) -> int:
    return int(await redis.execute("DBSIZE"))


@pytest.mark.parametrize(
    "how", ["deleted", "replaced", "with its parent", "with others", "of no kept text", "with its collection"]
)
async def test_what_went_is_forgotten_here_at_once_and_in_other_processes(
    open_likewise: Opener, settings: Settings, how: str
) -> None:
    async with open_likewise(worker=False) as here, open_likewise(worker=False) as there:
        # Given a text that two processes know, as a document and as a query
        policy = Policy(keep_text=False, keep_terms=False) if how == "of no kept text" else Policy()
        collection = await made(here, policy)
        tenant = collection.tenant
        notes = here.collection("notes")
        await notes.add([{"id": "a", "text": "alpha", "parent": "p"}, {"id": "b", "text": "beta"}], wait=how[0] != "o")
        for one in (here, there):
            for role in ("document", "query"):
                await one.embedder.embed(tenant, ["alpha", "kept"], role=role)
        of_one = there.embedder.cache_bytes // 4
        # When
        match how:
            case "replaced":
                await notes.add([{"id": "a", "text": "gamma"}], wait=False)
            case "with its parent":
                assert await here.runtime.writer.delete_parent(tenant, collection, "p") == 1
            case "with others":
                assert await here.runtime.writer.delete_many(tenant, collection, ["a", "b", "no such"]) == 2
            case "with its collection":
                await notes.drop()
            case _:
                await notes.delete("a")
        # Then
        assert not await known(here, "alpha")
        await until(lambda: there.embedder.cache_bytes == 2 * of_one)
        assert not await known(there, "alpha")
        assert not (await there.embedder.embed(tenant, ["alpha"], role="query")).cached.any()
        assert await known(there, "kept")


async def test_what_others_still_point_at_is_not_forgotten(idle: Likewise) -> None:
    notes = idle.collection("notes")
    await notes.add([{"id": "a", "text": "alpha"}, {"id": "b", "text": "alpha"}])
    await notes.delete("a")
    # This process hears the notice of its own deletion too, a moment later
    await until(lambda: known(idle, "alpha"))
    await notes.delete("b")
    assert not await known(idle, "alpha")


async def test_what_was_not_committed_is_not_forgotten(open_likewise: Opener) -> None:
    async with open_likewise(worker=False) as here, open_likewise(worker=False) as there:
        collection = await made(here)
        await here.collection("notes").add([{"id": "a", "text": "alpha"}, {"id": "b", "text": "beta"}])
        for one in (here, there):
            await known(one, "alpha")
        held = there.embedder.cache_bytes

        async def fail(unit: UnitOfWork) -> None:
            assert (await store(unit)).gone
            raise Invalid("No.")

        batch = [NewRecord(id="a", text="gamma")]
        with pytest.raises(Invalid):
            await here.runtime.writer.transaction(collection.tenant, Destination("notes", KIND), batch, fail)
        # What is told later comes later
        await known(there, "beta")
        await here.collection("notes").delete("b")
        await until(lambda: there.embedder.cache_bytes == held)
        assert await known(there, "alpha")
        assert await known(here, "alpha")


@pytest.mark.parametrize("scope", ["tenant", "shared"])
async def test_redis_has_it_no_more_when_the_caller_is_answered(
    settings: Settings, provider: FakeProvider, redis: RedisProcess, scope: str
) -> None:
    async with (
        with_redis(settings, provider, redis, cache_scope=scope, cache_bytes=0) as here,
        with_redis(settings, provider, redis, cache_scope=scope) as there,
    ):
        # Given a text that this tenant and another had embedded, in two processes
        other = await collections.tenant_named(here.runtime.pool, "other")
        await here.collection("notes").add([{"id": "a", "text": "alpha"}])
        await known(there, "alpha")
        await known(there, "alpha", other)
        await there.embedder.embed(await there.tenant(), ["alpha"], role="query")
        await until(lambda: _has(redis, 3 if scope == "tenant" else 2))
        # When
        await here.collection("notes").delete("a")
        # Then the other tenant's is there, where it has one of its own
        assert await keys_in(redis) == (1 if scope == "tenant" else 0)
        assert await known(there, "alpha", other) == (scope == "tenant")
        assert not await known(here, "alpha") or scope == "shared"


async def _has(redis: RedisProcess, count: int) -> bool:
    return await keys_in(redis) == count


async def test_a_process_that_never_had_the_model_takes_it_from_redis(
    settings: Settings, provider: FakeProvider, redis: RedisProcess
) -> None:
    # Given what a process that is gone had embedded
    async with with_redis(settings, provider, redis) as gone:
        await gone.collection("notes").add([{"id": "a", "text": "alpha"}])
        await until(lambda: _has(redis, 1))
    # When
    async with with_redis(settings, FakeProvider(), redis) as here:
        await here.collection("notes").delete("a")
        # Then
        assert await keys_in(redis) == 0


async def test_a_redis_that_is_away_keeps_nobody_from_deleting(settings: Settings, provider: FakeProvider) -> None:
    server = RedisProcess()
    async with server.running(), with_redis(settings, provider, server) as lw:
        await lw.collection("notes").add([{"id": "a", "text": "alpha"}, {"id": "b", "text": "beta"}])
        await until(lambda: _has(server, 2))
        server.pause()
        await lw.collection("notes").delete("a")
        assert not await known(lw, "alpha")
        server.resume()
        await lw.collection("notes").delete("b")
        # It is told as soon as it is well; then `alpha`, which was embedded since, is all that is there
        await until(lambda: _has(server, 1))


async def test_a_text_that_is_in_the_model_meanwhile_is_not_remembered(idle: Likewise, provider: FakeProvider) -> None:
    # Given a text of a record that is asked for anew, and is in the model
    await idle.collection("notes").add([{"id": "a", "text": "alpha"}])
    await idle.embedder.forget_all()
    provider.gate = asyncio.Event()
    asked = asyncio.create_task(known(idle, "alpha"))
    await until(lambda: provider.texts.count("alpha") == 2)
    # When its record is deleted meanwhile
    await idle.collection("notes").delete("a")
    provider.gate.set()
    # Then who asked gets it, and nobody remembers it; who asks after that has it remembered
    assert not await asked
    assert idle.embedder.cache_bytes == 0
    assert not await known(idle, "alpha")
    # This process hears the notice of its own deletion too, a moment later
    await until(lambda: known(idle, "alpha"))


async def test_what_comes_from_redis_meanwhile_is_not_kept_in_memory(
    settings: Settings, provider: FakeProvider, redis: RedisProcess
) -> None:
    async with with_redis(settings, provider, redis) as lw:
        tenant = await lw.tenant()
        for _ in range(50):
            await lw.embedder.embed(tenant, ["alpha"])
            await lw.embedder.forget_all()
            asked = asyncio.create_task(lw.embedder.embed(tenant, ["alpha"]))
            await asyncio.sleep(0)
            await lw.embedder.forget(tenant, [sha256(b"alpha").digest()], at_once=True)
            await asked
            assert not await known(lw, "alpha")


@pytest.mark.parametrize("heard", [True, False], ids=["told", "cut off"])
async def test_a_worker_that_had_a_deleted_text_in_the_model_does_not_remember_it(
    open_likewise: Opener, provider: FakeProvider, heard: bool
) -> None:
    async with open_likewise(worker=False) as here, open_likewise(worker=False) as there:
        # Given
        if not heard:
            await there.runtime.notifications.close()
        await here.collection("notes").add([{"id": "first", "text": "first"}], wait=False)
        await worker_of(there).step()
        await here.collection("notes").add([{"id": "a", "text": "alpha"}, {"id": "b", "text": "beta"}], wait=False)
        provider.gate = asyncio.Event()
        step = asyncio.create_task(worker_of(there).step())
        await until(lambda: "alpha" in provider.texts)
        # When
        await here.collection("notes").delete("a")
        provider.gate.set()
        await step
        # Then
        assert await known(there, "beta")
        assert not await known(there, "alpha")


async def test_a_process_that_was_cut_off_forgets_everything(
    open_likewise: Opener, postgres: ThrowawayPostgres, database: DatabaseUrls
) -> None:
    async with open_likewise(worker=False) as here, open_likewise(worker=False) as there:
        # Given
        await here.collection("notes").add([{"id": "a", "text": "alpha"}])
        await there.embedder.embed(await there.tenant(), ["alpha", "kept"])
        # When its connection is lost, and the text goes before it listens again
        name = database.owner.partition("?")[0].rpartition("/")[2]
        url = postgres.server.superuser_url()
        async with await AsyncConnection.connect(url, autocommit=True) as connection:
            ours = f"{LISTENERS} AND datname = '{name}'"
            await connection.execute(ours)  # type: ignore[arg-type]
        await here.collection("notes").delete("a")
        # Then
        await until(lambda: there.embedder.cache_bytes == 0)
        assert not await known(there, "alpha")
        assert not await known(there, "kept")


async def test_notices_say_digests_only_and_as_many_as_fit(idle: Likewise, database: DatabaseUrls) -> None:
    # Given
    collection = await made(idle)
    texts = [f"text {n}" for n in range(400)]
    batch = [{"id": text, "text": text, "parent": "p"} for text in texts]
    await idle.collection("notes").add(batch, wait=False)
    sealing = await notice_sealing(idle.runtime.pool)
    async with listening(database, sealing) as notices:
        # When
        await idle.runtime.writer.delete_parent(collection.tenant, collection, "p")
        # Then
        said = [one async for one in notices]
    assert {tenant for tenant, _ in said} == {str(collection.tenant)}
    assert sorted(b"".join(digests for _, digests in said)) == sorted(
        b"".join(sha256(text.encode()).digest() for text in texts)
    )


@asynccontextmanager
async def listening(database: DatabaseUrls, sealing: Sealing) -> AsyncIterator[AsyncIterator[tuple[str, bytes]]]:
    async with await AsyncConnection.connect(database.serving, autocommit=True) as connection:
        await connection.execute("LISTEN likewise_forget")

        async def heard() -> AsyncIterator[tuple[str, bytes]]:
            async for notice in connection.notifies(timeout=PATIENCE, stop_after=3):
                assert len(notice.payload) < 8_000
                tenant, _, digests = sealing.unseal_bytes(b64decode(notice.payload), b"notice").partition(b" ")
                yield tenant.decode(), digests

        yield heard()


@pytest.mark.parametrize("payload", ["", "x eA==", "1 text in the clear", "1 eA"])
async def test_a_notice_that_is_none_of_ours_has_everything_forgotten(
    idle: Likewise, database: DatabaseUrls, payload: str
) -> None:
    await known(idle, "alpha")
    async with await psycopg.AsyncConnection.connect(database.serving, autocommit=True) as connection:
        await connection.execute("SELECT pg_notify(%s, %s)", [cache_invalidation.CHANNEL, payload])
    await until(lambda: idle.embedder.cache_bytes == 0)
    await known(idle, "alpha")
    # This process hears the notice of its own deletion too, a moment later
    await until(lambda: known(idle, "alpha"))


async def test_with_a_large_collection_everything_is_forgotten(
    open_likewise: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (collections, cache_invalidation):
        monkeypatch.setattr(place, "MAX_HASHES", 1)
    async with open_likewise(worker=False) as here, open_likewise(worker=False) as there:
        notes = here.collection("notes")
        await notes.add([{"id": "a", "text": "alpha"}, {"id": "b", "text": "beta"}])
        # With texts that are no record's
        for one in (here, there):
            await one.embedder.embed(await one.tenant(), ["alpha", "kept"])
        await notes.drop()
        assert here.embedder.cache_bytes == 0
        await until(lambda: there.embedder.cache_bytes == 0)
        assert not await known(here, "kept")
        assert not await known(there, "kept")


async def test_far_more_than_anybody_can_read_is_everything(idle: Likewise, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given texts in the model
    monkeypatch.setattr("likewise.embedding.cache.MAX_TOMBSTONES", 10)
    known_ones = Tombstones()
    with known_ones.watched() as since:
        known_ones.add(1, [bytes([n]) * 32 for n in range(10)])
        assert known_ones.among(1, [bytes(32), b"x" * 32], since) == {bytes(32)}
        assert known_ones.among(2, [bytes(32)], since) == set()
        # When
        known_ones.add(1, [b"one more" * 4])
        # Then
        assert known_ones.among(2, [bytes(32)], since) == {bytes(32)}
        with known_ones.watched() as later:
            assert known_ones.among(1, [bytes(32)], later) == set()
