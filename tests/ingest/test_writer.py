"""The way in: what belongs to a write's transaction, what it leaves behind, and what it does not write again."""

import pytest
from psycopg.sql import SQL

from likewise.apps.collections.service import KIND
from likewise.db import collections
from likewise.db.collections import CollectionRow
from likewise.db.failures import Contended
from likewise.db.records import WriteOutcome
from likewise.errors import Invalid
from likewise.ingest.unit_of_work import UnitOfWork, store
from likewise.ingest.writer import Destination
from likewise.kind import NewRecord, Policy
from likewise.library import Likewise
from likewise.observe.logs import REQUEST_ID
from likewise.testing import DatabaseUrls, FakeProvider
from tests.ingest.rows import asked
from tests.patience import until

pytestmark = pytest.mark.usefixtures("whole")

NOTES = Destination("notes", KIND)
WAL = "SELECT pg_current_wal_insert_lsn() - '0/0'"


async def made(lw: Likewise, name: str = "notes") -> CollectionRow:
    """A collection, as the writer takes it."""
    await lw.collections.create(await lw.tenant(), name)
    return await found(lw, name)


async def found(lw: Likewise, name: str = "notes") -> CollectionRow:
    async with lw.runtime.pool.tenant(await lw.tenant()) as tx:
        return await collections.named(tx, name)


# --- what else belongs to the transaction -----------------------------------------------------------------------------


async def test_what_is_done_before_the_commit_is_committed_with_it(idle: Likewise) -> None:
    # Given
    collection = await made(idle)
    seen: list[WriteOutcome] = []

    async def label(unit: UnitOfWork) -> WriteOutcome:
        seen.append(await store(unit))
        await unit.tx.execute(SQL("UPDATE records SET status = 'labelled'"))
        return seen[-1]

    # When
    batch = [NewRecord(id="a", text="alpha"), NewRecord(id="b", text="beta")]
    written = await idle.runtime.writer.transaction(collection.tenant, NOTES, batch, label)
    # Then
    assert seen == [written]
    assert (written.created, written.changed, written.unchanged) == (2, 0, 0)
    assert (await idle.collection("notes").get("a")).status == "labelled"


async def test_it_is_done_for_a_batch_of_nothing_and_of_nothing_new(idle: Likewise) -> None:
    collection = await made(idle)
    seen: list[int] = []

    async def count(unit: UnitOfWork) -> None:
        seen.append((await store(unit)).unchanged)

    for batch in ([], [NewRecord(id="a", text="alpha")], [NewRecord(id="a", text="alpha")]):
        await idle.runtime.writer.transaction(collection.tenant, NOTES, batch, count)
    assert seen == [0, 0, 1]


async def test_if_it_fails_nothing_is_stored(idle: Likewise) -> None:
    collection = await made(idle)

    async def fail(unit: UnitOfWork) -> None:
        await store(unit)
        raise Invalid("No.")

    batch = [NewRecord(id="a", text="alpha")]
    with pytest.raises(Invalid):
        await idle.runtime.writer.transaction(collection.tenant, NOTES, batch, fail)
    assert (await idle.collection("notes").stats())["records"] == 0


async def test_it_is_run_again_with_its_transaction(idle: Likewise) -> None:
    collection = await made(idle)
    runs: list[int] = []

    async def meet_another(unit: UnitOfWork) -> WriteOutcome:
        outcome = await store(unit)
        runs.append(outcome.created)
        if len(runs) < 3:
            raise Contended("40001")
        return outcome

    batch = [NewRecord(id="a", text="alpha")]
    written = await idle.runtime.writer.transaction(collection.tenant, NOTES, batch, meet_another)
    assert runs == [1, 1, 1]
    assert written.created == 1
    assert (await idle.collection("notes").stats())["records"] == 1


# --- what it leaves behind --------------------------------------------------------------------------------------------


async def test_the_queue_knows_the_request_of_each_text(idle: Likewise, database: DatabaseUrls) -> None:
    notes = idle.collection("notes")
    for request in ("first-request", None):
        token = REQUEST_ID.set(request)
        await notes.add([{"id": str(request), "text": f"text of {request}"}], wait=False)
        REQUEST_ID.reset(token)
    entered = "SELECT text, request_id, tokens FROM waiting JOIN contents ON pk = content ORDER BY pk"
    assert await asked(database, entered) == [
        ("text of first-request", "first-request", 6),
        ("text of None", None, 4),
    ]


async def test_the_average_length_follows_what_comes_and_stays_when_something_goes(idle: Likewise) -> None:
    # Given
    notes = idle.collection("notes")
    await notes.add([{"id": str(n), "text": f"pump {n} fails {'again ' * n}"} for n in range(10)], wait=False)

    async def counted() -> tuple[int, int]:
        await idle.runtime.writer.averages.flush(idle.runtime.pool)
        collection = await found(idle)
        return collection.contents_total, collection.terms_total

    assert await counted() == (10, 3 * 10 + 45)
    # When one goes and one changes
    await notes.delete("9")
    await notes.add([{"id": "8", "text": "pump 8"}], wait=False)
    # Then 77 terms of 11 contents are, of the 9 that are left, 63
    assert await counted() == (9, 63)
    for n in range(9):
        await notes.delete(str(n))
    assert await counted() == (0, 0)


async def test_where_no_words_are_kept_nothing_is_counted(idle: Likewise, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    notes = idle.collection("notes")
    await notes.create(policy=Policy(keep_terms=False))
    await notes.add([{"id": "a", "text": "first"}, {"id": "b", "text": "second"}], wait=False)
    await idle.runtime.writer.averages.flush(idle.runtime.pool)
    monkeypatch.setattr(collections, "add_terms", lambda *_, **__: pytest.fail("counted"))
    # When one goes and one changes, then the collection's row, which others may wait for, is left alone
    await notes.delete("a")
    await notes.add([{"id": "b", "text": "third"}], wait=False)
    await idle.runtime.writer.averages.flush(idle.runtime.pool)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("how", ["same", "payload", "other record", "moved away"])
async def test_a_failed_text_is_tried_again_when_it_is_sent_again(
    lw: Likewise, provider: FakeProvider, how: str
) -> None:
    # Given a text that the model cannot read
    notes = lw.collection("notes")
    provider.poison = lambda text: text == "moody"
    await notes.add([{"id": "a", "text": "moody"}, {"id": "b", "text": "good"}], wait=False)
    await until(lambda: _is(lw, "a", "failed"))
    # When it can, and somebody sends the record again
    provider.poison = None
    again = {
        "same": {"id": "a", "text": "moody"},
        "payload": {"id": "a", "text": "moody", "payload": {"n": 1}},
        "other record": {"id": "c", "text": "moody"},
        "moved away": {"id": "a", "text": "another"},
    }[how]
    result = await notes.add([again, {"id": "b", "text": "good"}], wait=False)
    # Then
    assert result.unchanged == (2 if how == "same" else 1)
    await until(lambda: _is(lw, "a", "ready"))
    assert (await notes.stats())["failed"] == 0


async def _is(lw: Likewise, id: str, state: str) -> bool:
    return (await lw.collection("notes").get(id)).vector == state


# --- what it does not write again -------------------------------------------------------------------------------------


async def test_an_unchanged_batch_writes_nothing(idle: Likewise, database: DatabaseUrls) -> None:
    # Given
    notes = idle.collection("notes")
    batch = [
        {"id": str(n), "text": f"text {n}", "payload": {"n": n, "tags": ["a"]}, "parent": "p", "status": "s"}
        for n in range(100)
    ]
    await notes.add(batch, wait=False)
    await asked(database, "SELECT count(*) FROM records JOIN contents ON contents.pk = content")
    # When
    grown = []
    for _ in range(10):
        before = (await asked(database, WAL))[0][0]
        assert (await notes.add(batch, wait=False)).unchanged == 100
        grown.append((await asked(database, WAL))[0][0] - before)
    # Then; what Postgres writes beside it (its own statistics, pages tidied) is not ours, and not each time
    assert min(grown) == 0
