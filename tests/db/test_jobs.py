"""Jobs on contents: begun with them, ended by whoever settles the last of them, told why where nothing comes."""

from collections.abc import Callable, Coroutine, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from likewise.apps.collections.service import KIND
from likewise.db import collections, jobs
from likewise.db.collections import CollectionRow
from likewise.db.jobs import Failure, Job, TextGone
from likewise.db.transaction import Tx
from likewise.errors import Conflict, NotFound
from likewise.ingest.unit_of_work import UnitOfWork
from likewise.ingest.writer import Destination
from likewise.kind import NewRecord, Policy
from likewise.library import Likewise
from likewise.testing import DatabaseUrls, FakeProvider
from tests.conftest import Opener
from tests.ingest.rows import asked
from tests.ingest.workers import worker_of
from tests.patience import until

LEFT = "SELECT count(*) FROM job_contents"
READING = {"truncated_len": 5, "tokens": 3, "truncated_tokens": 0}


class Desk:
    """One tenant's jobs over a collection `notes`; vectors are made, and settled, when a test says so."""

    def __init__(self, lw: Likewise, tenant: int) -> None:
        self.lw = lw
        self.tenant = tenant

    async def collection(self) -> CollectionRow:
        async with self.lw.runtime.pool.tenant(self.tenant) as tx:
            return await collections.named(tx, "notes")

    async def start(self, texts: Mapping[str, str], **options: Any) -> UUID:
        """A job for these records."""
        job, collection = uuid4(), await self.collection()

        async def begin(unit: UnitOfWork) -> None:
            outcome = await unit.write(await unit.compare(unit.records), for_job=True)
            known = {"result": {"model": "m"}, **options}
            await jobs.start(unit.tx, job, "embed", collection.active.id, dict(outcome.content_of), **known)

        batch = [NewRecord(id=id_, text=text) for id_, text in texts.items()]
        await self.lw.runtime.writer.transaction(self.tenant, Destination("notes", KIND), batch, begin)
        return job

    async def write(self, texts: Mapping[str, str]) -> None:
        """Records that no job asks for."""
        batch = [NewRecord(id=id_, text=text) for id_, text in texts.items()]
        await self.lw.runtime.writer.write(self.tenant, Destination("notes", KIND), batch)

    async def embed(self, database: DatabaseUrls) -> None:
        """Make the vectors of all that waits, and settle their jobs."""
        while await worker_of(self.lw).step():
            pass
        generation = (await self.collection()).active.id
        found = await asked(database, f"SELECT content FROM vec_{generation}")  # type: ignore[arg-type]
        await self.do(lambda tx: jobs.settle(tx, generation, [row[0] for row in found]))

    async def of(self, job: UUID) -> Job:
        return await self.do(lambda tx: jobs.of(tx, job))

    async def state(self, job: UUID) -> str:
        return (await self.of(job)).state

    async def do(self, work: Callable[[Tx], Coroutine[Any, Any, Any]]) -> Any:
        async with self.lw.runtime.pool.tenant(self.tenant) as tx:
            return await work(tx)


@pytest.fixture
async def desk(idle: Likewise) -> Desk:
    """The desk of the only tenant."""
    tenant = await idle.tenant()
    await idle.collections.create(tenant, "notes")
    return Desk(idle, tenant)


# --- begun and settled ------------------------------------------------------------------------------------------------


async def test_one_whose_vectors_are_there_has_succeeded_at_once(desk: Desk, database: DatabaseUrls) -> None:
    await desk.write({"a": "alpha", "b": "beta"})
    await desk.embed(database)
    one, two = await desk.start({"c": "alpha"}), await desk.start({"d": "alpha", "e": "beta"})
    job = await desk.of(one)
    assert (job.state, job.total, job.done, job.failed, job.result) == ("SUCCEEDED", 1, 1, 0, {"model": "m", **READING})
    job = await desk.of(two)
    assert (job.state, job.total, job.done, job.failed, job.result) == ("SUCCEEDED", 2, 2, 0, {"model": "m"})
    assert await asked(database, LEFT) == [(0,)]


async def test_one_waits_for_those_that_are_missing(desk: Desk, database: DatabaseUrls) -> None:
    # Given
    await desk.write({"a": "alpha"})
    await desk.embed(database)
    none, some = await desk.start({"b": "beta"}), await desk.start({"c": "alpha", "d": "beta", "e": "gamma"})
    assert [((job := await desk.of(one)).state, job.done) for one in (none, some)] == [("PENDING", 0), ("RUNNING", 1)]
    # When
    await desk.embed(database)
    # Then
    job = await desk.of(none)
    assert (job.state, job.done, job.result["tokens"]) == ("SUCCEEDED", 1, 3)
    job = await desk.of(some)
    assert (job.state, job.done, job.failed, job.failures) == ("SUCCEEDED", 3, 0, ())
    assert await asked(database, LEFT) == [(0,)]


async def test_items_of_the_same_text_are_counted_each(desk: Desk, database: DatabaseUrls) -> None:
    job = await desk.start({"a": "alpha", "b": "alpha", "c": "beta"})
    await desk.embed(database)
    assert ((found := await desk.of(job)).state, found.total, found.done) == ("SUCCEEDED", 3, 3)


async def test_it_runs_from_the_first_claim_on(desk: Desk, database: DatabaseUrls, provider: FakeProvider) -> None:
    job = await desk.start({"a": "alpha"})
    assert await desk.state(job) == "PENDING"
    await asked_to(database, "UPDATE waiting SET claim = gen_random_uuid(), run_after = now() + interval '1 hour'")
    assert await desk.state(job) == "RUNNING"
    listed = await desk.do(lambda tx: jobs.listed(tx, limit=9, state="RUNNING"))
    assert [one.id for one in listed] == [job]
    assert await desk.do(lambda tx: jobs.listed(tx, limit=9, state="PENDING")) == []


async def asked_to(database: DatabaseUrls, statement: str) -> None:
    await asked(database, f"WITH did AS ({statement} RETURNING 1) SELECT count(*) FROM did")  # type: ignore[arg-type]


async def test_a_job_of_a_write_that_failed_is_not_there(desk: Desk, database: DatabaseUrls) -> None:
    with pytest.raises(TypeError):
        await desk.start({"a": "alpha"}, result={"not": object()})
    assert await asked(database, "SELECT (SELECT count(*) FROM jobs), (SELECT count(*) FROM records)") == [(0, 0)]


# --- what comes to nothing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "why"), [("deleted", jobs.DELETED), ("replaced", jobs.REPLACED)])
async def test_a_text_that_leaves_is_withdrawn(desk: Desk, database: DatabaseUrls, how: str, why: str) -> None:
    # Given
    alone, with_others = await desk.start({"a": "alpha"}), await desk.start({"b": "alpha", "c": "beta"})
    # When its last records leave it
    collection = await desk.collection()
    if how == "deleted":
        assert await desk.lw.runtime.writer.delete_many(desk.tenant, collection, ["a", "b"]) == 2
    else:
        await desk.write({"a": "gamma", "b": "gamma"})
    # Then
    job = await desk.of(alone)
    assert (job.state, job.error, job.done, job.failed) == ("CANCELLED", why, 0, 1)
    assert job.failures == (Failure("a", why),)
    assert await desk.state(with_others) == "RUNNING"
    await desk.embed(database)
    job = await desk.of(with_others)
    assert (job.state, job.done, job.failed, job.failures) == ("SUCCEEDED", 1, 1, (Failure("b", why),))


async def test_a_content_that_others_point_at_is_embedded_all_the_same(desk: Desk, database: DatabaseUrls) -> None:
    job = await desk.start({"a": "alpha"})
    await desk.write({"b": "alpha"})
    assert await desk.lw.runtime.writer.delete(desk.tenant, await desk.collection(), "a")
    await desk.embed(database)
    assert await desk.state(job) == "SUCCEEDED"


async def test_a_collection_that_is_dropped_withdraws_all(desk: Desk) -> None:
    job = await desk.start({"a": "alpha", "b": "beta"})
    await desk.lw.collections.drop(desk.tenant, "notes")
    found = await desk.of(job)
    assert (found.state, found.error, found.failed) == ("CANCELLED", jobs.DELETED, 2)


async def test_a_job_of_which_all_fail_has_failed_and_of_which_some_do_has_succeeded(
    desk: Desk, database: DatabaseUrls
) -> None:
    all_of_it, some = await desk.start({"a": "bad"}), await desk.start({"b": "bad", "c": "good"})
    await asked(database, "SELECT fail_contents(array_agg(pk), 'text_failed', false) FROM contents WHERE text = 'bad'")
    await desk.embed(database)
    job = await desk.of(all_of_it)
    assert (job.state, job.error, job.failures) == ("FAILED", "text_failed", (Failure("a", "text_failed"),))
    assert ((job := await desk.of(some)).state, job.done, job.failed) == ("SUCCEEDED", 1, 1)


# --- cancelled and tried again ----------------------------------------------------------------------------------------


async def test_a_cancelled_job_gives_up_what_it_alone_waits_for(desk: Desk, database: DatabaseUrls) -> None:
    # Given
    one, two = await desk.start({"a": "alpha", "b": "beta"}), await desk.start({"c": "beta"})
    # When
    await desk.do(lambda tx: jobs.cancel(tx, one))
    # Then
    job = await desk.of(one)
    assert (job.state, job.error, job.failed) == ("CANCELLED", "cancelled", 2)
    assert [failure.code for failure in job.failures] == ["cancelled", "cancelled"]
    waiting = "SELECT c.text, c.state, c.reason FROM contents c ORDER BY c.pk"
    assert await asked(database, waiting) == [("alpha", "failed", "cancelled"), ("beta", "live", None)]
    assert await asked(database, "SELECT count(*) FROM waiting") == [(1,)]
    await desk.embed(database)
    assert await desk.state(two) == "SUCCEEDED"
    assert await desk.state(one) == "CANCELLED"
    for job_, code in ((one, "job_ended"), (two, "job_ended")):
        with pytest.raises(Conflict) as refused:
            await desk.do(lambda tx, job_=job_: jobs.cancel(tx, job_))
        assert refused.value.code == code


@pytest.mark.parametrize("how", ["cancelled", "failed", "failed and embedded since"])
async def test_what_failed_is_tried_again_while_its_text_is_kept(desk: Desk, database: DatabaseUrls, how: str) -> None:
    # Given
    job = await desk.start({"a": "alpha", "b": "beta"})
    if how == "cancelled":
        await desk.do(lambda tx: jobs.cancel(tx, job))
    else:
        await asked(database, "SELECT fail_contents(array_agg(pk), 'text_failed', false) FROM contents")
    if how == "failed and embedded since":
        await desk.write({"c": "alpha", "d": "beta"})
        await desk.embed(database)
        assert await desk.state(job) == "FAILED"
    # When
    await desk.do(lambda tx: jobs.retry(tx, job))
    # Then
    if how != "failed and embedded since":
        assert ((found := await desk.of(job)).state, found.failed, found.error) == ("PENDING", 0, None)
        await desk.embed(database)
    assert ((found := await desk.of(job)).state, found.done, found.failed) == ("SUCCEEDED", 2, 0)
    assert await asked(database, "SELECT DISTINCT state FROM contents") == [("live",)]


@pytest.mark.parametrize("how", ["record deleted", "text not kept"])
async def test_a_text_that_is_gone_is_to_be_sent_again(desk: Desk, database: DatabaseUrls, how: str) -> None:
    job = await desk.start({"a": "alpha"})
    if how == "record deleted":
        await desk.lw.runtime.writer.delete(desk.tenant, await desk.collection(), "a")
    else:
        await asked(database, "SELECT fail_contents(array_agg(pk), 'text_failed', false) FROM contents")
        await asked_to(database, "UPDATE contents SET text = NULL")
    with pytest.raises(TextGone):
        await desk.do(lambda tx: jobs.retry(tx, job))


async def test_nothing_is_tried_again_that_has_not_failed(desk: Desk, database: DatabaseUrls) -> None:
    job = await desk.start({"a": "alpha"})
    with pytest.raises(Conflict) as refused:
        await desk.do(lambda tx: jobs.retry(tx, job))
    assert refused.value.code == "job_running"
    await desk.embed(database)
    with pytest.raises(Conflict) as refused:
        await desk.do(lambda tx: jobs.retry(tx, job))
    assert refused.value.code == "nothing_failed"


# --- asked for, and forgotten -----------------------------------------------------------------------------------------


async def test_jobs_are_listed_newest_first_page_by_page_and_by_state(desk: Desk, database: DatabaseUrls) -> None:
    # Given
    made = [await desk.start({str(n): f"text {n}"}) for n in range(5)]
    await desk.do(lambda tx: jobs.cancel(tx, made[2]))
    # When
    pages, after = [], None
    while page := await desk.do(lambda tx, after=after: jobs.listed(tx, limit=2, after=after)):
        pages.append([job.id for job in page])
        after = (page[-1].created_at, page[-1].id)
    # Then
    assert pages == [[made[4], made[3]], [made[2], made[1]], [made[0]]]
    for state, wanted in (
        ("CANCELLED", [made[2]]),
        ("SUCCEEDED", []),
        ("PENDING", [made[4], made[3], made[1], made[0]]),
    ):
        found = await desk.do(lambda tx, state=state: jobs.listed(tx, limit=9, state=state))
        assert [job.id for job in found] == wanted
    # A place whose job has left is a place all the same
    middle = (await desk.do(lambda tx: jobs.of(tx, made[2]))).created_at
    found = await desk.do(lambda tx: jobs.listed(tx, limit=9, after=(middle, UUID(int=0))))
    assert [job.id for job in found] == [made[1], made[0]]
    states = await desk.do(lambda tx: jobs.states(tx, [made[0], made[2], uuid4()]))
    assert states == {made[0]: "PENDING", made[2]: "CANCELLED"}


async def test_another_tenants_job_is_not_there(desk: Desk, database: DatabaseUrls) -> None:
    job = await desk.start({"a": "alpha"})
    other = Desk(desk.lw, await collections.tenant_named(desk.lw.runtime.pool, "other"))
    for work in (jobs.of, jobs.cancel, jobs.retry):
        with pytest.raises(NotFound):
            await other.do(lambda tx, work=work: work(tx, job))
    assert await other.do(lambda tx: jobs.listed(tx, limit=9)) == []
    place = ((await desk.do(lambda tx: jobs.of(tx, job))).created_at + timedelta(days=1), job)
    assert await other.do(lambda tx: jobs.listed(tx, limit=9, after=place)) == []
    assert await other.do(lambda tx: jobs.states(tx, [job])) == {}
    # Nor does what it says of our contents change anything
    contents = [row[0] for row in await asked(database, "SELECT pk FROM contents")]
    await other.do(lambda tx: jobs.withdraw(tx, contents, jobs.DELETED))
    assert await desk.state(job) == "PENDING"


async def test_those_that_ended_long_ago_are_forgotten_so_many_at_a_time(desk: Desk, database: DatabaseUrls) -> None:
    # Given three that ended 31 days ago, one that ended a day after the limit, and one that never did
    made = [await desk.start({str(n): f"text {n}"}) for n in range(5)]
    for job in made[:4]:
        await desk.do(lambda tx, job=job: jobs.cancel(tx, job))
    await asked_to(
        database, "UPDATE jobs SET created_at = now() - interval '99 days', ended_at = ended_at - interval '31 days'"
    )
    await asked_to(database, f"UPDATE jobs SET ended_at = now() - interval '29 days' WHERE id = '{made[3]}'")
    pool = desk.lw.runtime.pool
    # When
    assert [await jobs.forget_ended(pool, 2) for _ in range(3)] == [2, 1, 0]
    # Then
    assert {job.id for job in await desk.do(lambda tx: jobs.listed(tx, limit=9))} == {made[3], made[4]}
    assert await asked(database, LEFT) == [(2,)]


async def test_what_waited_sealed_for_a_day_is_given_up(desk: Desk, database: DatabaseUrls) -> None:
    # Given texts that wait sealed, beside older ones that are kept; and tasks with an input and without
    kept, old, young = [await desk.start({one: one}) for one in ("kept", "old", "young")]
    await asked_to(database, "UPDATE contents SET sealed = 'x', text = NULL WHERE text <> 'kept'")
    await asked_to(
        database,
        "UPDATE waiting SET entered_at = now() - CASE WHEN content = (SELECT max(content) FROM waiting)"
        " THEN interval '23 hours' ELSE interval '25 hours' END",
    )
    tasks = [uuid4(), uuid4(), uuid4()]
    for task, sealed in zip(tasks, (b"x", None, b"x"), strict=True):
        await desk.do(
            lambda tx, task=task, sealed=sealed: jobs.add_task(
                tx, task, "clean", sealed_input=sealed, result={}, request_id=None
            )
        )
    claimed = await jobs.claim_task(desk.lw.runtime.pool, ["clean"], uuid4(), timedelta(minutes=1), 0)
    assert claimed is not None
    await asked_to(database, "UPDATE jobs SET created_at = now() - interval '25 hours' WHERE kind = 'clean'")
    await asked_to(database, f"UPDATE jobs SET created_at = now() - interval '23 hours' WHERE id = '{tasks[2]}'")
    # When; one at a time, so that the kept one is in its way
    while await jobs.expire(desk.lw.runtime.pool, 1):
        pass
    # Then
    job = await desk.of(old)
    assert (job.state, job.error, job.failures) == ("FAILED", "text_expired", (Failure("old", "text_expired"),))
    assert [await desk.state(one) for one in (kept, young)] == ["PENDING", "PENDING"]
    states = [(await desk.of(task)).state for task in tasks]
    assert states[0] == "FAILED"
    assert {states[1], states[2]} <= {"PENDING", "RUNNING"}
    assert await asked(database, "SELECT count(*) FROM contents WHERE sealed IS NOT NULL") == [(1,)]
    with pytest.raises(TextGone):
        await desk.do(lambda tx: jobs.retry(tx, old))
    with pytest.raises(TextGone):
        await desk.do(lambda tx: jobs.retry(tx, tasks[0]))


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Likewise looks all the time for what is to be forgotten, and takes little at once."""
    monkeypatch.setattr("likewise.runtime.FORGET_SECONDS", 0.01)
    monkeypatch.setattr("likewise.runtime.MAX_FORGOTTEN", 2)


@pytest.mark.usefixtures("often")
async def test_a_likewise_that_runs_gives_up_by_itself_what_waited_for_a_day(
    open_likewise: Opener, database: DatabaseUrls
) -> None:
    async with open_likewise(worker=False) as lw:
        # Given
        await lw.collections.create(await lw.tenant(), "notes", policy=Policy(keep_text=False, keep_terms=False))
        desk = Desk(lw, await lw.tenant())
        *old, young = [await desk.start({str(n): f"text {n}"}) for n in range(6)]
        task = uuid4()
        await desk.do(lambda tx: jobs.add_task(tx, task, "try", sealed_input=b"x", result={}, request_id=None))
        # When
        await asked_to(database, f"UPDATE jobs SET created_at = now() - interval '25 hours' WHERE id <> '{young}'")
        await asked_to(
            database,
            "UPDATE waiting SET entered_at = now() - interval '25 hours'"
            " WHERE content <> (SELECT max(content) FROM waiting)",
        )

        async def is_given_up() -> bool:
            return {(await desk.of(job)).error for job in (*old, task)} == {"text_expired"}

        await until(is_given_up)
        # Then
        assert await desk.state(young) == "PENDING"
    assert await asked(database, "SELECT count(*) FROM contents WHERE sealed IS NOT NULL") == [(1,)]
    assert await asked(database, "SELECT count(*) FROM jobs WHERE input <> ''") == [(0,)]


@pytest.mark.usefixtures("often")
async def test_a_likewise_that_runs_forgets_by_itself_what_ended_a_month_ago(
    open_likewise: Opener, database: DatabaseUrls
) -> None:
    async with open_likewise(worker=False) as lw:
        await lw.collections.create(await lw.tenant(), "notes")
        desk = Desk(lw, await lw.tenant())
        for n in range(5):
            job = await desk.start({str(n): f"text {n}"})
            await desk.do(lambda tx, job=job: jobs.cancel(tx, job))
        await asked_to(
            database,
            f"UPDATE jobs SET ended_at = now() - CASE WHEN id = '{job}' THEN interval '29 days'"
            " ELSE interval '31 days' END",
        )

        async def none_is_left() -> bool:
            return await asked(database, "SELECT id FROM jobs") == [(job,)]

        await until(none_is_left)
