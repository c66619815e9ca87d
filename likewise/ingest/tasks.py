"""Tasks: long work that outlives its request, claimed under a lease and run with no transaction open."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4

from cachetools import LRUCache

from likewise.backoff import Backoff
from likewise.db import jobs
from likewise.db.jobs import Task
from likewise.db.pool import Pool
from likewise.db.text_key import TextKeys
from likewise.db.transaction import Tx
from likewise.errors import DatabaseUnavailable, Internal, LikewiseError, ModelFails, TooManyRequests, Unavailable
from likewise.ingest.claims import renewing, through_outage
from likewise.ingest.notifications import WakeSignal
from likewise.observe.logs import REQUEST_ID, get_logger
from likewise.observe.steps import TaskStep, kind_of_task
from likewise.sealing import about_job
from likewise.stopping import stop, to_its_end

LEASE = timedelta(seconds=60)
# At once in one process; of one kind one less, so that a long clean-up does not keep searches waiting.
AT_ONCE = 4
# Tries of a task that fails by itself, or costs its worker.
MAX_ATTEMPTS = 3
RETRY = Backoff(1.0, 60.0)
# Of one tenant, so that nobody fills the table.
MAX_OPEN = 1_000
RETRY_SECONDS = 10
POLL_SECONDS = 1.0
PROGRESS_SECONDS = 1.0
# Tasks whose waits are remembered, so that they double.
MAX_REMEMBERED = 10_000

log = get_logger(__name__)

T = TypeVar("T")
Progress = Callable[[int, int], Awaitable[None]]


# Does one kind of task, for a tenant and with its input; returns its result, as JSON can say it. What it does may be
# done again, from the beginning: its worker may die. It is cancelled when the task is, or is not ours any more. Its
# progress is told how many of how many are done, as often as one likes.
Handler = Callable[[int, bytes | None, Progress], Awaitable[Mapping[str, Any]]]


class LeaseLost(LikewiseError):
    """The task is not this worker's any more."""

    code = "lease_lost"


class Tasks:
    """The tasks of all tenants. Any number of processes may run them."""

    def __init__(self, pool: Pool, wake_signal: WakeSignal, text_keys: TextKeys, *, lease: timedelta = LEASE) -> None:
        """Inputs wait sealed; `wake_signal` is that of tasks alone."""
        self._pool = pool
        self._wake_signal = wake_signal
        self._text_keys = text_keys
        self._lease = lease
        self._handlers: dict[str, Handler] = {}
        self._last_tenant = 0
        self._waits: LRUCache[UUID, int] = LRUCache(MAX_REMEMBERED)

    def register(self, kind: str, handler: Handler) -> None:
        """Have this process do such tasks; kinds are words of ours, never a caller's."""
        self._handlers[kind] = handler
        kind_of_task(kind)

    async def add(
        self, tx: Tx, job: UUID, kind: str, input: bytes | None = None, *, result: Mapping[str, Any] | None = None
    ) -> None:
        """Have a worker do something as soon as the transaction is committed.

        Args:
            input: it is sealed, and leaves when the task ends.
            result: what is known of the result from the beginning.

        Raises:
            TooManyRequests: this tenant has as many that have not ended as it may.
        """
        if tx.tenant is None:
            raise RuntimeError("a task is a tenant's")
        if await jobs.open_tasks(tx) >= MAX_OPEN:
            raise TooManyRequests(
                f"{MAX_OPEN} of your tasks have not ended yet; send this again later.", retry_after=RETRY_SECONDS
            )
        sealed = None
        if input is not None:
            await self._text_keys.hold(tx)
            sealed = self._text_keys.sealing.seal_bytes(input, about_job(tx.tenant, job.bytes))
        await jobs.add_task(tx, job, kind, sealed_input=sealed, result=result or {}, request_id=REQUEST_ID.get())
        tx.once_committed(self._wake_signal.send)

    async def run(self) -> None:
        """Work until cancelled; then what was begun is given back at once."""
        running: dict[asyncio.Task[None], _Claimed] = {}
        try:
            while True:
                if len(running) >= AT_ONCE:
                    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                if not await self._begin_another(running):
                    await self._wake_signal.wait(POLL_SECONDS)
        finally:
            left = list(running.values())
            await stop(running)
            await to_its_end(self._give_back(left))

    async def _begin_another(self, running: "dict[asyncio.Task[None], _Claimed]") -> bool:
        busy = Counter(one.task.kind for one in running.values())
        kinds = [kind for kind in self._handlers if busy[kind] < max(1, AT_ONCE - 1)]
        if not kinds or len(running) >= AT_ONCE:
            return False
        try:
            # Whoever is cancelled meanwhile has it among those that run.
            return await to_its_end(self._claim(kinds, running))
        except DatabaseUnavailable:
            return False
        except LikewiseError as error:
            log.error("tasks_failed", code=error.code, reason=error.detail)
            return False

    async def _claim(self, kinds: list[str], running: "dict[asyncio.Task[None], _Claimed]") -> bool:
        claim = uuid4()
        task = await jobs.claim_task(self._pool, kinds, claim, self._lease, self._last_tenant)
        if task is None:
            return False
        self._last_tenant = task.tenant
        claimed = _Claimed(self._pool, task, claim, self._lease)
        work = asyncio.create_task(self._work(claimed), name="task")
        running[work] = claimed
        work.add_done_callback(running.pop)
        work.add_done_callback(lambda _: self._wake_signal.wake_here())
        return True

    async def _work(self, claimed: "_Claimed") -> None:
        """One task, to its end or back to the others; whatever it raises ends here."""
        task = claimed.task
        REQUEST_ID.set(task.request_id)
        with TaskStep(task.kind) as step:
            try:
                async with renewing(claimed.renew, self._lease):
                    step.became(await self._tried(claimed))
            except LeaseLost:
                step.became("lost")
            except LikewiseError as error:
                # The database, when it was to be told; the lease runs out.
                log.warning("task_not_ended", kind=task.kind, code=error.code, reason=error.detail)
                step.became("lost")

    async def _tried(self, claimed: "_Claimed") -> str:
        """Do a task, and return its end: a word of `metrics.TASKS`."""
        task = claimed.task
        if task.attempts >= MAX_ATTEMPTS:
            # Those that fail by themselves end at their last try: this one took its workers with it.
            return await self._give_up(claimed, LeaseLost())
        try:
            result = await claimed.doing(self._handlers[task.kind](task.tenant, self._input(task), claimed.progress))
            return await self._end(claimed, result=result)
        except LeaseLost:
            raise
        except ModelFails as error:
            # Nobody knows that it is not this task's fault.
            return await self._failed(claimed, error)
        except Unavailable as error:
            return await self._again(claimed, error, failed=False)
        except LikewiseError as error:
            if error.status < Internal.status and not error.retryable:
                return await self._give_up(claimed, error)
            return await self._failed(claimed, error)
        except Exception as error:  # noqa: BLE001 - a handler may raise anything, and the others go on
            log.error("task_failed", kind=task.kind, error=error)
            return await self._failed(claimed, Internal())

    def _input(self, task: Task) -> bytes | None:
        if task.input is None:
            return None
        return self._text_keys.sealing.unseal_bytes(bytes(task.input), about_job(task.tenant, task.id.bytes))

    async def _failed(self, claimed: "_Claimed", error: LikewiseError) -> str:
        if claimed.task.attempts + 1 >= MAX_ATTEMPTS:
            return await self._give_up(claimed, error)
        return await self._again(claimed, error, failed=True)

    async def _give_up(self, claimed: "_Claimed", error: LikewiseError) -> str:
        """End it with the code that says most: of what is wrong at a place, that of the place."""
        code = error.faults[0].code if error.faults else error.code
        log.warning("task_given_up", kind=claimed.task.kind, code=code, reason=error.detail)
        return await self._end(claimed, error=code)

    async def _again(self, claimed: "_Claimed", error: LikewiseError, *, failed: bool) -> str:
        task = claimed.task
        seconds = self._wait_of(task)
        log.info("task_waits", kind=task.kind, code=error.code, seconds=round(seconds, 1))
        await claimed.release(after=timedelta(seconds=seconds), failed=failed)
        return "failed" if failed else "released"

    def _wait_of(self, task: Task) -> float:
        """Seconds until the next try: twice as long each time, and by chance, so that not all come back together."""
        times = self._waits.get(task.id, task.attempts)
        self._waits[task.id] = times + 1
        return RETRY.jittered(times + 2)

    async def _end(
        self, claimed: "_Claimed", *, result: Mapping[str, Any] | None = None, error: str | None = None
    ) -> str:
        if not await claimed.finish(result=result, error=error):
            raise LeaseLost
        self._waits.pop(claimed.task.id, None)
        return "done" if error is None else "given up"

    async def _give_back(self, left: "list[_Claimed]") -> None:
        for claimed in left:
            with contextlib.suppress(LikewiseError):
                await claimed.release(after=timedelta(0), failed=False, patient=False)


class _Claimed:
    """A task that is ours for as long as its lease is renewed."""

    def __init__(self, pool: Pool, task: Task, claim: UUID, lease: timedelta) -> None:
        self.task = task
        self._pool = pool
        self._claim = claim
        self._lease = lease
        self._lost = asyncio.Event()
        self._told_at = 0.0
        self._progress: tuple[int, int] | None = None

    async def doing(self, work: Awaitable[Mapping[str, Any]]) -> Mapping[str, Any]:
        """Return the result of the work; LeaseLost if the task is taken away before."""
        doing, losing = asyncio.ensure_future(work), asyncio.create_task(self._lost.wait())
        try:
            await asyncio.wait({doing, losing}, return_when=asyncio.FIRST_COMPLETED)
            if self._lost.is_set():
                raise LeaseLost
            if doing.cancelled():
                # By itself: nobody else cancels it but in the end.
                raise Internal
            return doing.result()
        finally:
            await stop([doing, losing])

    async def progress(self, done: int, total: int) -> None:
        """Remember how far the work is; the row knows it about a second later."""
        self._progress = (done, total)
        if time.monotonic() - self._told_at >= PROGRESS_SECONDS:
            self._told_at = time.monotonic()
            await self.renew()

    async def finish(self, *, result: Mapping[str, Any] | None, error: str | None) -> bool:
        """End it, in spite of a database that is away for no longer than the lease; False if it is not ours."""

        async def once() -> bool:
            async with self._pool.tenant(self.task.tenant) as tx:
                return await jobs.finish_task(tx, self.task, self._claim, result=result, error=error)

        return await through_outage(once, self._lease)

    async def release(self, *, after: timedelta, failed: bool, patient: bool = True) -> None:
        """Give it to whoever claims it next, after so long; if `patient`, in spite of such a database as well."""

        async def once() -> None:
            async with self._pool.tenant(self.task.tenant) as tx:
                await jobs.release_task(tx, self.task, self._claim, after=after, failed=failed)

        await (through_outage(once, self._lease) if patient else once())

    async def renew(self) -> None:
        """Keep the task for one lease more, and tell how far it is; a database that is away costs one renewal."""
        with contextlib.suppress(LikewiseError):
            async with self._pool.tenant(self.task.tenant) as tx:
                ours = await jobs.renew_task(tx, self.task, self._claim, self._lease, progress=self._progress)
            if not ours:
                self._lost.set()
