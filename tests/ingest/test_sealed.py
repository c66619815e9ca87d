"""Texts that are not kept: they wait sealed, and leave with their vector, their last try or their time."""

from typing import Any, LiteralString
from uuid import UUID, uuid4

import pytest
from psycopg import AsyncConnection
from psycopg.sql import SQL

from likewise.apps.collections.service import KIND
from likewise.db import collections, contents, jobs
from likewise.db.collections import CollectionRow
from likewise.db.jobs import Job
from likewise.db.records import WriteOutcome
from likewise.ingest.unit_of_work import UnitOfWork
from likewise.ingest.writer import Destination
from likewise.kind import NewRecord, Policy
from likewise.library import Likewise
from likewise.sealing import Sealing, TextKey
from likewise.testing import DatabaseUrls, FakeProvider
from tests.ingest.rows import asked
from tests.ingest.workers import worker_of

pytestmark = pytest.mark.usefixtures("whole")

CONTENTS: LiteralString = "SELECT text, sealed IS NOT NULL, state, reason FROM contents ORDER BY pk"
MADE_OLDER: LiteralString = "UPDATE waiting SET entered_at = now() - interval '25 hours' RETURNING content"
NEARLY_A_DAY: LiteralString = "UPDATE waiting SET entered_at = now() - interval '23 hours' RETURNING content"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried again at once."""
    monkeypatch.setattr("likewise.db.waiting.FIRST_PAUSE", 0.0)


@pytest.fixture
async def private(idle: Likewise) -> CollectionRow:
    """A collection that keeps neither texts nor words."""
    tenant = await idle.tenant()
    await idle.collections.create(tenant, "private", policy=Policy(keep_text=False, keep_terms=False))
    return await idle.runtime.recent.get(tenant, "private")


async def send(
    lw: Likewise, collection: CollectionRow, texts: dict[str, str], *, only_new: bool = False
) -> tuple[UUID, WriteOutcome]:
    """Records of these texts, of `only_new` those that are not stored, and a job that waits for them."""
    job = uuid4()

    async def start(unit: UnitOfWork) -> WriteOutcome:
        stored = [row[0] for row in await unit.tx.rows(SQL("SELECT id FROM records"))] if only_new else []
        diff = await unit.compare([one for one in unit.records if one.id not in stored])
        outcome = await unit.write(diff, for_job=True)
        await unit.start_job(job, "embed", outcome.content_of, result={"of": "test"})
        return outcome

    batch = [NewRecord(id=name, text=text) for name, text in texts.items()]
    into = Destination(collection.name, KIND)
    return job, await lw.runtime.writer.transaction(collection.tenant, into, batch, start)


async def job_of(lw: Likewise, job: UUID) -> Job:
    async with lw.runtime.pool.tenant(await lw.tenant()) as tx:
        return await jobs.of(tx, job)


async def work(lw: Likewise, **options: Any) -> None:
    """All that can be done now."""
    worker = worker_of(lw, **options)
    while await worker.step():
        pass


async def in_clear(database: DatabaseUrls, canary: str) -> list[str]:
    """The tables that hold a text as it is, in whatever column."""
    found = []
    async with await AsyncConnection.connect(database.owner, autocommit=True) as connection:
        names = await connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'likewise'")
        for (name,) in await names.fetchall():
            rows = await connection.execute(SQL("SELECT t::text FROM likewise.{} t").format(SQL(name)))
            encoded = canary.encode().hex()
            found += [name for (row,) in await rows.fetchall() if canary in row or encoded in row]
    return found


async def test_a_text_waits_sealed_and_leaves_with_its_vector(
    idle: Likewise, private: CollectionRow, database: DatabaseUrls
) -> None:
    # When
    job, _ = await send(idle, private, {"a": "canary text of pumps"})
    # Then
    assert await asked(database, CONTENTS) == [(None, True, "live", None)]
    assert await in_clear(database, "canary") == []
    assert (await job_of(idle, job)).state == "PENDING"
    # When
    await work(idle)
    # Then
    assert await asked(database, CONTENTS) == [(None, False, "live", None)]
    ended = await job_of(idle, job)
    assert (ended.state, ended.done, ended.result) == (
        "SUCCEEDED",
        1,
        {"of": "test", "tokens": 6, "truncated_len": 20, "truncated_tokens": 0},
    )
    found = await idle.collection("private").search("pumps", mode="dense")
    assert [(hit.id, hit.record.text) for hit in found.hits] == [("a", None)]


async def test_a_job_on_texts_that_have_their_vectors_has_succeeded_at_once(
    idle: Likewise, private: CollectionRow
) -> None:
    await send(idle, private, {"a": "one", "b": "two"})
    await work(idle)
    both, _ = await send(idle, private, {"c": "one", "d": "two"})
    some, _ = await send(idle, private, {"e": "one", "f": "three"})
    assert ((await job_of(idle, both)).state, (await job_of(idle, both)).done) == ("SUCCEEDED", 2)
    assert ((await job_of(idle, some)).state, (await job_of(idle, some)).done) == ("RUNNING", 1)
    await work(idle)
    assert (await job_of(idle, some)).state == "SUCCEEDED"


async def test_two_jobs_on_one_text_end_together(
    idle: Likewise, private: CollectionRow, provider: FakeProvider
) -> None:
    one, _ = await send(idle, private, {"a": "the same"})
    other, _ = await send(idle, private, {"b": "the same"})
    before = len(provider.texts)
    await work(idle)
    assert {(await job_of(idle, job)).state for job in (one, other)} == {"SUCCEEDED"}
    assert provider.texts[before:].count("the same") == 1


async def test_a_text_that_fails_by_itself_leaves_with_its_last_try_and_comes_alive_when_sent_again(
    idle: Likewise, private: CollectionRow, provider: FakeProvider, database: DatabaseUrls
) -> None:
    # Given
    provider.poison = lambda text: "bad" in text
    job, _ = await send(idle, private, {"a": "a bad text", "b": "a good one"})
    # When
    await work(idle, tries=3)
    # Then
    ended = await job_of(idle, job)
    assert (ended.state, ended.done, ended.failed) == ("SUCCEEDED", 1, 1)
    assert [failure.item for failure in ended.failures] == ["a"]
    reason = ended.failures[0].code
    assert sorted(await asked(database, CONTENTS)) == [
        (None, False, "failed", reason),
        (None, False, "live", None),
    ]
    assert provider.texts.count("a bad text") >= 3
    # When
    provider.poison = None
    again, _ = await send(idle, private, {"a": "a bad text", "c": "another"})
    await work(idle)
    assert (await job_of(idle, again)).state == "SUCCEEDED"


async def test_a_job_of_which_everything_fails_has_failed_with_the_reason(
    idle: Likewise, private: CollectionRow, provider: FakeProvider
) -> None:
    provider.poison = lambda text: "bad" in text
    job, _ = await send(idle, private, {"a": "a bad text"})
    await work(idle, tries=1)
    ended = await job_of(idle, job)
    assert (ended.state, ended.error) == ("FAILED", ended.failures[0].code)


async def test_a_text_that_has_waited_for_a_day_leaves(
    idle: Likewise, private: CollectionRow, database: DatabaseUrls
) -> None:
    # Given
    job, _ = await send(idle, private, {"a": "nobody came for me"})
    await asked(database, NEARLY_A_DAY)
    assert await jobs.expire(idle.runtime.pool, 100) == 0
    assert (await job_of(idle, job)).state == "PENDING"
    await asked(database, MADE_OLDER)
    # When
    assert await jobs.expire(idle.runtime.pool, 100) == 1
    # Then
    assert await asked(database, CONTENTS) == [(None, False, "failed", "text_expired")]
    ended = await job_of(idle, job)
    assert (ended.state, ended.error) == ("FAILED", "text_expired")
    assert await asked(database, "SELECT count(*) FROM waiting") == [(0,)]


async def test_a_text_that_is_kept_waits_for_as_long_as_it_takes(idle: Likewise, database: DatabaseUrls) -> None:
    notes = idle.collection("notes")
    await notes.add([{"id": "a", "text": "kept"}], wait=False)
    await asked(database, MADE_OLDER)
    assert await jobs.expire(idle.runtime.pool, 100) == 0
    await work(idle)
    assert (await notes.get("a")).vector == "ready"


async def test_a_worker_without_the_key_leaves_texts_to_those_who_have_it(
    idle: Likewise, private: CollectionRow, database: DatabaseUrls
) -> None:
    # Given
    job, _ = await send(idle, private, {"a": "sealed"})
    stranger = worker_of(idle, sealing=Sealing([TextKey(b"x" * 32)]))
    # When
    assert not await stranger.step()
    # Then
    assert await asked(database, "SELECT claim, attempts, alone FROM waiting") == [(None, 0, False)]
    await asked(database, "UPDATE waiting SET run_after = now() RETURNING content")
    await work(idle)
    assert (await job_of(idle, job)).state == "SUCCEEDED"


async def test_a_sealed_text_put_in_anothers_place_does_not_open(
    idle: Likewise, private: CollectionRow, database: DatabaseUrls
) -> None:
    # Given
    job, _ = await send(idle, private, {"a": "one", "b": "two"})
    pks = [row[0] for row in await asked(database, "SELECT pk FROM contents ORDER BY pk")]
    swapped = SQL("UPDATE contents SET sealed = (SELECT sealed FROM contents WHERE pk = {}) WHERE pk = {} RETURNING pk")
    await asked(database, swapped.format(pks[0], pks[1]))  # type: ignore[arg-type]
    # When
    await work(idle)
    # Then
    ended = await job_of(idle, job)
    assert (ended.state, ended.done, [failure.code for failure in ended.failures]) == (
        "SUCCEEDED",
        1,
        ["text_unreadable"],
    )


async def test_what_is_stored_decides_what_is_written(idle: Likewise, private: CollectionRow) -> None:
    # Given
    await send(idle, private, {"a": "first"})
    # When
    _, written = await send(idle, private, {"a": "second", "b": "third"}, only_new=True)
    # Then
    assert dict(written.outcome_of) == {"b": "created"}
    async with idle.runtime.pool.tenant(private.tenant) as tx:
        stored = await tx.rows(SQL("SELECT text_hash FROM contents ORDER BY pk"))
        assert await collections.generation(tx, private.active.id) is not None
    assert [bytes(row[0]) for row in stored] == [contents.text_hash("first"), contents.text_hash("third")]
