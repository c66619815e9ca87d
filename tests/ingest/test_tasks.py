"""Tasks: done once, by somebody, whoever dies; ended by their own runner alone."""

import asyncio
import base64
import contextlib
import io
import os
import signal
import sys
import threading
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, LiteralString
from uuid import UUID, uuid4

import pytest

from likewise import backoff
from likewise.backoff import Backoff
from likewise.db import collections, jobs
from likewise.db.jobs import Job
from likewise.db.pool import Pool
from likewise.db.text_key import SettingKeys, TextKeys
from likewise.errors import Conflict, Invalid, LikewiseError, ModelFails, ModelUnavailable, TooManyRequests
from likewise.ingest import tasks as module
from likewise.ingest.notifications import TASKS, Notifications, WakeSignal
from likewise.ingest.tasks import Handler, Progress, Tasks
from likewise.library import Likewise
from likewise.observe import logs
from likewise.observe.logs import REQUEST_ID
from likewise.observe.metrics import TASKS_ENDED
from likewise.sealing import Sealing, TextKey
from likewise.stopping import stop
from likewise.testing import DatabaseUrls
from tests.ingest.rows import asked
from tests.patience import PATIENCE, until

# As they are where no test shortens them.
RETRY = module.RETRY
LONG = timedelta(seconds=60)
# Renewed every other second, and kept by a process that a busy machine holds up for less than four.
RENEWED_SOON = timedelta(seconds=6)


def text_keys(key: bytes) -> TextKeys:
    """Those of a process that has this key from its settings."""
    return TextKeys(SettingKeys(base64.b64encode(key).decode(), None), Sealing([TextKey(key)]))


KEYS = text_keys(b"k" * 32)
SECRET = "zqsecret"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a second try."""
    monkeypatch.setattr(module, "RETRY", Backoff(0.01, 0.02))
    monkeypatch.setattr(module, "POLL_SECONDS", 0.05)


@asynccontextmanager
async def runner(
    database: DatabaseUrls,
    handlers: Mapping[str, Handler],
    *,
    lease: timedelta = LONG,
    keys: TextKeys = KEYS,
    running: bool = True,
) -> AsyncIterator[Tasks]:
    """One process's part: its own connections and bell."""
    pool = await Pool(database.serving, max_size=6).open()
    notifications = Notifications(database.serving)
    tasks = Tasks(pool, WakeSignal(notifications, TASKS), keys, lease=lease)
    for kind, handler in handlers.items():
        tasks.register(kind, handler)
    await notifications.start()
    work = [asyncio.create_task(tasks.run())] if running else []
    try:
        yield tasks
    finally:
        await stop(work)
        await notifications.close()
        await pool.close()


async def add(
    lw: Likewise, tasks: Tasks, kind: str = "echo", input: bytes | None = None, tenant: int | None = None, **known: Any
) -> UUID:
    job = uuid4()
    async with lw.runtime.pool.tenant(tenant or await lw.tenant()) as tx:
        await tasks.add(tx, job, kind, input, result=known)
    return job


async def found(lw: Likewise, job: UUID) -> Job:
    async with lw.runtime.pool.tenant(await lw.tenant()) as tx:
        return await jobs.of(tx, job)


async def ended(lw: Likewise, job: UUID) -> Job:
    async def over() -> bool:
        return (await found(lw, job)).state not in ("PENDING", "RUNNING")

    await until(over)
    return await found(lw, job)


async def echo(tenant: int, input: bytes | None, progress: Progress) -> Mapping[str, Any]:
    return {"tenant": tenant, "said": None if input is None else input.decode()}


class Gate:
    """A handler that waits until it is let through, and counts who came and who was stopped."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.begun = 0
        self.stopped = 0

    async def __call__(self, tenant: int, input: bytes | None, progress: Progress, /) -> Mapping[str, Any]:
        self.begun += 1
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        return {"by": "gate"}


# --- what is done -----------------------------------------------------------------------------------------------------


async def test_a_task_is_done_and_its_input_waits_sealed_and_leaves(idle: Likewise, database: DatabaseUrls) -> None:
    async with runner(database, {"echo": echo}, running=False) as tasks:
        # Given
        job = await add(idle, tasks, input=SECRET.encode(), of="asset")
        ((sealed,),) = await asked(database, "SELECT input FROM jobs")
        assert SECRET.encode() not in bytes(sealed)
        assert (await found(idle, job)).state == "PENDING"
        # When
        async with runner(database, {"echo": echo}):
            done = await ended(idle, job)
    # Then
    assert (done.state, done.error) == ("SUCCEEDED", None)
    assert done.result == {"of": "asset", "tenant": await idle.tenant(), "said": SECRET}
    assert await asked(database, "SELECT input, claim FROM jobs") == [(b"", None)]


async def test_it_is_begun_by_another_process_without_waiting_for_its_poll(
    idle: Likewise, database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 600.0)
    async with runner(database, {"echo": echo}), runner(database, {}, running=False) as here:
        await asyncio.sleep(0.1)
        for _ in range(3):
            assert (await ended(idle, await add(idle, here))).state == "SUCCEEDED"


async def test_one_that_was_not_committed_is_not_done(idle: Likewise, database: DatabaseUrls) -> None:
    async with runner(database, {"echo": echo}) as tasks:
        with contextlib.suppress(Invalid):
            async with idle.runtime.pool.tenant(await idle.tenant()) as tx:
                await tasks.add(tx, uuid4(), "echo")
                raise Invalid("No.")
        await ended(idle, await add(idle, tasks))
    assert await asked(database, "SELECT count(*) FROM jobs") == [(1,)]


async def test_runners_at_once_do_each_task_once(idle: Likewise, database: DatabaseUrls) -> None:
    did: Counter[str] = Counter()
    both = asyncio.Barrier(2)

    def counting(who: str) -> Handler:
        met = []

        async def count(tenant: int, input: bytes | None, progress: Progress) -> Mapping[str, Any]:
            did[(input or b"").decode()] += 1
            if not met:
                # The first of each goes on when the other has one too.
                met.append(who)
                await both.wait()
            await asyncio.sleep(0.001)
            return {"by": who}

        return count

    async with runner(database, {"echo": counting("a")}) as one, runner(database, {"echo": counting("b")}):
        added = [await add(idle, one, input=str(n).encode()) for n in range(60)]
        done = [await ended(idle, job) for job in added]
    assert [job.state for job in done] == ["SUCCEEDED"] * 60
    assert {job.result["by"] for job in done} == {"a", "b"}
    assert did == {str(n): 1 for n in range(60)}


async def test_a_kind_that_nobody_here_does_is_left_to_others(idle: Likewise, database: DatabaseUrls) -> None:
    async with runner(database, {"echo": echo}) as tasks:
        other = await add(idle, tasks, "other")
        await ended(idle, await add(idle, tasks))
        assert (await found(idle, other)).state == "PENDING"
        async with runner(database, {"other": echo}):
            assert (await ended(idle, other)).state == "SUCCEEDED"


async def test_one_kind_leaves_a_place_for_the_others(idle: Likewise, database: DatabaseUrls) -> None:
    gate = Gate()
    async with runner(database, {"long": gate, "short": echo}) as tasks:
        long = [await add(idle, tasks, "long") for _ in range(6)]
        await until(lambda: gate.begun == module.AT_ONCE - 1)
        assert (await ended(idle, await add(idle, tasks, "short"))).state == "SUCCEEDED"
        assert gate.begun == module.AT_ONCE - 1
        gate.open.set()
        assert {(await ended(idle, job)).state for job in long} == {"SUCCEEDED"}


async def test_progress_is_seen_and_the_request_is_known(idle: Likewise, database: DatabaseUrls) -> None:
    gate, requests = Gate(), []

    async def slow(tenant: int, input: bytes | None, progress: Progress) -> Mapping[str, Any]:
        requests.append(REQUEST_ID.get())
        await progress(3, 8)
        return await gate(tenant, input, progress)

    async with runner(database, {"slow": slow}) as tasks:
        token = REQUEST_ID.set("the-request")
        job = await add(idle, tasks, "slow")
        REQUEST_ID.reset(token)

        async def seen() -> bool:
            now = await found(idle, job)
            return (now.state, now.done, now.total) == ("RUNNING", 3, 8)

        await until(seen)
        gate.open.set()
        done = await ended(idle, job)
    assert (done.state, done.done, done.total, requests) == ("SUCCEEDED", 8, 8, ["the-request"])


async def test_a_tenant_may_have_so_many_open_and_another_as_many(
    idle: Likewise, database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_OPEN", 2)
    other = await collections.tenant_named(idle.runtime.pool, "other")
    async with runner(database, {}, running=False) as tasks:
        for _ in range(2):
            await add(idle, tasks)
        with pytest.raises(TooManyRequests) as refused:
            await add(idle, tasks)
        await add(idle, tasks, tenant=other)
    assert refused.value.retry_after


# --- what fails -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "tries", "code"),
    [
        (Invalid("No.", code="bad_thing"), 1, "bad_thing"),
        (Invalid.at("/mode", "No.", "at_its_place"), 1, "at_its_place"),
        (ModelFails(), 3, "model_failed"),
        (LikewiseError("Ours.", code="odd"), 3, "odd"),
        (TooManyRequests(), 3, "too_many_requests"),
        (RuntimeError(SECRET), 3, "internal"),
        (asyncio.CancelledError(), 3, "internal"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_what_cannot_heal_fails_at_once_and_the_rest_at_the_third_try(
    idle: Likewise, database: DatabaseUrls, error: BaseException, tries: int, code: str
) -> None:
    lines = io.StringIO()
    logs.configure("debug", lines)
    tried = []

    async def fail(tenant: int, input: bytes | None, progress: Progress) -> Mapping[str, Any]:
        tried.append(tenant)
        raise error

    async with runner(database, {"fail": fail, "echo": echo}) as tasks:
        job = await add(idle, tasks, "fail", of="asset")
        failed = await ended(idle, job)
        # The others go on
        assert (await ended(idle, await add(idle, tasks))).state == "SUCCEEDED"
    assert (failed.state, failed.error, len(tried)) == ("FAILED", code, tries)
    assert failed.result == {"of": "asset"}
    assert ("task_waits" in lines.getvalue()) == (tries > 1)
    assert SECRET not in lines.getvalue()


async def test_a_result_that_is_no_json_is_a_failure(idle: Likewise, database: DatabaseUrls) -> None:
    async def odd(tenant: int, input: bytes | None, progress: Progress) -> Mapping[str, Any]:
        return {"set": {1, 2}}

    async with runner(database, {"odd": odd}) as tasks:
        assert (await ended(idle, await add(idle, tasks, "odd"))).error == "internal"


async def test_a_part_that_is_away_costs_no_try(idle: Likewise, database: DatabaseUrls) -> None:
    tried = []

    async def away(tenant: int, input: bytes | None, progress: Progress) -> Mapping[str, Any]:
        tried.append(tenant)
        if len(tried) < 6:
            raise ModelUnavailable
        return {}

    async with runner(database, {"away": away}) as tasks:
        assert (await ended(idle, await add(idle, tasks, "away"))).state == "SUCCEEDED"
    assert await asked(database, "SELECT attempts FROM jobs") == [(0,)]


@pytest.mark.parametrize("error", [RuntimeError(), ModelUnavailable()], ids=["failed", "away"])
async def test_it_waits_1_to_60_seconds_for_its_next_try(
    idle: Likewise, database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    # Given the waits as they are, and chance at either end
    monkeypatch.setattr(module, "RETRY", RETRY)
    monkeypatch.setattr(module, "MAX_ATTEMPTS", 9)
    asked_for = []

    def latest(least: float, most: float) -> float:
        asked_for.append(least)
        return most

    monkeypatch.setattr(backoff, "random", SimpleNamespace(uniform=latest))

    async def fail(tenant: int, input: bytes | None, progress: Progress) -> Mapping[str, Any]:
        raise error

    async with runner(database, {"fail": fail}) as tasks:
        await add(idle, tasks, "fail")
        waits = []
        for tries in range(1, 9):
            # When it is given back, and its time comes
            await until(lambda tries=tries: len(asked_for) == tries)
            waits.append(await wait_of_the_task(database))
    # Then
    assert waits == [2, 4, 8, 16, 32, 60, 60, 60]
    assert asked_for == [1.0] * 8


BACK: LiteralString = "SELECT extract(epoch FROM run_after - updated_at)::int FROM jobs WHERE claim IS NULL"


async def wait_of_the_task(database: DatabaseUrls) -> int:
    """The seconds for which the one task was given back, rounded; its time has come then."""

    back: list[tuple[int]] = []

    async def is_back() -> bool:
        back[:] = await asked(database, BACK)
        return bool(back)

    await until(is_back)
    await asked(database, "UPDATE jobs SET run_after = now() RETURNING id")
    return back[0][0]


async def test_a_process_without_the_key_leaves_it_to_one_that_has_it(idle: Likewise, database: DatabaseUrls) -> None:
    other = text_keys(b"o" * 32)
    async with runner(database, {"echo": echo}, keys=other), runner(database, {}, running=False) as here:
        job = await add(idle, here, input=b"said")
        await asyncio.sleep(0.2)
        assert (await found(idle, job)).state in ("PENDING", "RUNNING")
        async with runner(database, {"echo": echo}):
            assert (await ended(idle, job)).result["said"] == "said"


async def test_what_failed_without_an_input_is_tried_again_and_with_one_is_to_be_sent_again(
    idle: Likewise, database: DatabaseUrls
) -> None:
    broken = [True]

    async def sometimes(tenant: int, input: bytes | None, progress: Progress) -> Mapping[str, Any]:
        if broken[0]:
            raise Invalid("No.")
        return {}

    async with runner(database, {"sometimes": sometimes}) as tasks:
        added = [await add(idle, tasks, "sometimes", one) for one in (None, b"text")]
        assert {(await ended(idle, job)).state for job in added} == {"FAILED"}
        broken[0] = False
        async with idle.runtime.pool.tenant(await idle.tenant()) as tx:
            await jobs.retry(tx, added[0])
        assert (await ended(idle, added[0])).state == "SUCCEEDED"
        for job, code in zip(added, ("nothing_failed", "text_gone"), strict=True):
            with pytest.raises(Conflict) as refused:
                async with idle.runtime.pool.tenant(await idle.tenant()) as tx:
                    await jobs.retry(tx, job)
            assert refused.value.code == code


# --- who dies, is stopped or is too late ------------------------------------------------------------------------------


async def test_a_runner_that_stops_gives_back_at_once_and_nothing_is_counted(
    idle: Likewise, database: DatabaseUrls
) -> None:
    gate = Gate()
    async with runner(database, {"gate": gate}) as tasks:
        added = [await add(idle, tasks, "gate") for _ in range(3)]
        await until(lambda: gate.begun == 3)
    assert gate.stopped == 3
    assert await asked(database, "SELECT attempts, claim FROM jobs") == [(0, None)] * 3
    gate.open.set()
    async with runner(database, {"gate": gate}):
        assert {(await ended(idle, job)).state for job in added} == {"SUCCEEDED"}


async def test_one_whose_lease_ran_out_writes_nothing(idle: Likewise, database: DatabaseUrls) -> None:
    # Given a runner with an event loop of its own, which its handler holds up
    reached, go_on = threading.Event(), threading.Event()

    async def hold(tenant: int, input: bytes | None, progress: Progress) -> Mapping[str, Any]:
        reached.set()
        assert go_on.wait(PATIENCE)
        return {"by": "the first"}

    def lost() -> float:
        return float(TASKS_ENDED.labels("hold", "lost")._value.get())

    async def process() -> None:
        async with runner(database, {"hold": hold}):
            await until(go_on.is_set)
            # Until it was refused
            await until(lambda: lost() > before)

    async with runner(database, {}, running=False) as tasks:
        job, before = await add(idle, tasks, "hold"), lost()
        first = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(process())))
        try:
            await until(reached.is_set)
            # When its lease is over, and another takes over
            await asked(database, "UPDATE jobs SET run_after = now() RETURNING attempts")
            gate = Gate()
            async with runner(database, {"hold": gate}):
                await until(lambda: gate.begun == 1)
                go_on.set()
                await first
                # Then
                assert (await found(idle, job)).state == "RUNNING"
                gate.open.set()
                assert (await ended(idle, job)).result == {"by": "gate"}
        finally:
            go_on.set()
    assert await asked(database, "SELECT attempts FROM jobs") == [(1,)]


async def test_a_lease_is_renewed_for_as_long_as_the_work_takes(idle: Likewise, database: DatabaseUrls) -> None:
    gate, lease = Gate(), RENEWED_SOON
    handlers: dict[str, Handler] = {"gate": gate, "echo": echo}
    async with runner(database, handlers, lease=lease) as tasks, runner(database, handlers, lease=lease):
        job = await add(idle, tasks, "gate")
        await until(lambda: gate.begun == 1)
        ((first,),) = await asked(database, "SELECT run_after FROM jobs")

        async def would_have_ended() -> bool:
            ((now,),) = await asked(database, "SELECT now()")
            return bool(now > first)

        await until(would_have_ended)
        # And they have looked for what is free since
        for _ in range(2):
            await ended(idle, await add(idle, tasks))
        gate.open.set()
        assert (await ended(idle, job)).state == "SUCCEEDED"
    assert gate.begun == 1


PROCESS = """
import asyncio, sys
from datetime import timedelta
from likewise.db.pool import Pool
from likewise.ingest.notifications import Notifications
from likewise.ingest.tasks import Tasks
from likewise.ingest.notifications import TASKS, WakeSignal
from likewise.db.text_key import SettingKeys, TextKeys
from likewise.sealing import Sealing, TextKey

KEYS = TextKeys(SettingKeys("a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=", None), Sealing([TextKey(b"k" * 32)]))

async def hang(tenant, input, progress):
    print("begun", flush=True)
    await asyncio.sleep(600)

async def main():
    pool = await Pool(sys.argv[1], max_size=3).open()
    notifications = Notifications(sys.argv[1])
    tasks = Tasks(pool, WakeSignal(notifications, TASKS), KEYS, lease=timedelta(seconds=4))
    tasks.register("echo", hang)
    await notifications.start()
    await tasks.run()

asyncio.run(main())
"""


async def test_another_takes_over_from_a_process_that_was_killed(idle: Likewise, database: DatabaseUrls) -> None:
    # Given
    async with runner(database, {}, running=False) as tasks:
        job = await add(idle, tasks, input=b"said")
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", PROCESS, database.serving, stdout=PIPE)
    assert process.stdout is not None
    try:
        assert await asyncio.wait_for(process.stdout.readline(), PATIENCE) == b"begun\n"
    finally:
        # When
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]
    # Then
    async with runner(database, {"echo": echo}):
        assert (await ended(idle, job)).result["said"] == "said"
    assert await asked(database, "SELECT attempts FROM jobs") == [(1,)]


async def test_one_that_cost_three_workers_is_given_up(idle: Likewise, database: DatabaseUrls) -> None:
    did = []

    async def never(tenant: int, input: bytes | None, progress: Progress) -> Mapping[str, Any]:
        did.append(tenant)
        return {}

    async with runner(database, {"never": never}, running=False) as tasks:
        job = await add(idle, tasks, "never")
        for _ in range(3):
            assert await jobs.claim_task(idle.runtime.pool, ["never"], uuid4(), timedelta(0), 0)
        async with runner(database, {"never": never}):
            failed = await ended(idle, job)
    assert (failed.state, failed.error, did) == ("FAILED", "lease_lost", [])


async def test_one_that_is_cancelled_is_stopped_and_its_result_refused(idle: Likewise, database: DatabaseUrls) -> None:
    gate = Gate()

    async def stubborn(tenant: int, input: bytes | None, progress: Progress) -> Mapping[str, Any]:
        with pytest.raises(asyncio.CancelledError):
            await gate(tenant, input, progress)
        return {"by": "the stubborn"}

    async with runner(database, {"gate": gate, "stubborn": stubborn}, lease=RENEWED_SOON) as tasks:
        added = [await add(idle, tasks, kind) for kind in ("gate", "stubborn")]
        await until(lambda: gate.begun == 2)
        async with idle.runtime.pool.tenant(await idle.tenant()) as tx:
            for job in added:
                await jobs.cancel(tx, job)
        await until(lambda: gate.stopped == 2)
        # It does others in its place
        tasks.register("echo", echo)
        await ended(idle, await add(idle, tasks))
    for job in added:
        cancelled = await found(idle, job)
        assert (cancelled.state, cancelled.error, cancelled.result) == ("CANCELLED", "cancelled", {})


async def test_a_likewise_with_a_worker_does_what_is_registered(lw: Likewise) -> None:
    lw.runtime.tasks.register("echo", echo)
    assert (await ended(lw, await add(lw, lw.runtime.tasks, input=b"said"))).result["said"] == "said"
