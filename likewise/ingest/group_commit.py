"""Group commit: small writes that come at once share a transaction, its round trips and its flush to disk."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from likewise.db.records import PreparedRecord, WriteOutcome
from likewise.errors import Internal, LikewiseError

# Some are committed while others are prepared; whoever comes meanwhile joins the next one. In one process three or four
# stored most for 16 clients, in noisy runs; over HTTP one to three did not differ.
GROUPS_AT_ONCE = 3
# Records of one group: more would keep its first members waiting for no gain.
MAX_RECORDS = 128
CLOSE_SECONDS = 2.0

P = TypeVar("P")


@dataclass(eq=False)
class _Member:
    """One caller: its records, and what became of them."""

    records: Sequence[PreparedRecord]
    done: asyncio.Future[WriteOutcome]


@dataclass
class _Queue:
    """The callers of one place that no group has taken yet, and how many groups run."""

    members: list[_Member] = field(default_factory=list)
    running: int = 0


class GroupCommit(Generic[P]):
    """Stores records of any callers, those of one place in groups. Nobody waits for a group to fill.

    A place is what the members of a group have in common: a collection, and the lane of their texts.
    """

    def __init__(self, store: Callable[[P, Sequence[PreparedRecord]], Awaitable[WriteOutcome]]) -> None:
        """Store with a function that takes any records of one place and stores them in one transaction."""
        self._store = store
        self._queues: dict[P, _Queue] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def write(self, place: P, records: Sequence[PreparedRecord]) -> WriteOutcome:
        """Store records with others of the same place; raises what storing just these raises."""
        queue = self._queues.setdefault(place, _Queue())
        member = _Member(records, asyncio.get_running_loop().create_future())
        queue.members.append(member)
        self._start(place, queue)
        try:
            return await member.done
        finally:
            # A caller that leaves before its turn takes its records along.
            if member in queue.members:
                queue.members.remove(member)

    async def close(self) -> None:
        """Wait a moment for the groups that run; those that take longer fail with the connections they use."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)

    def _start(self, place: P, queue: _Queue) -> None:
        if queue.running >= GROUPS_AT_ONCE or not queue.members:
            return
        queue.running += 1
        # In a context of its own: what is logged here belongs to no one request.
        task = asyncio.get_running_loop().create_task(self._run(place, queue), context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, place: P, queue: _Queue) -> None:
        try:
            while group := _next_group(queue.members):
                await self._store_group(place, group)
        finally:
            queue.running -= 1
            if queue.running == 0 and not queue.members:
                self._queues.pop(place, None)

    async def _store_group(self, place: P, group: Sequence[_Member]) -> None:
        """Store a group; one that the database refuses is stored by member: a fault is only its own member's."""
        try:
            records = sorted((record for member in group for record in member.records), key=lambda record: record.id)
            outcome = await self._store(place, records)
        except LikewiseError as error:
            if len(group) > 1 and error.status == Internal.status:
                for member in group:
                    await self._store_group(place, [member])
            else:
                # What is away, or gone, is so for each of them.
                _fail(group, error)
        except Exception as error:  # noqa: BLE001 - its callers raise it; those who wait behind them are stored too
            _fail(group, error)
        except BaseException as error:
            _fail(group, error)
            raise
        else:
            for member in group:
                if not member.done.done():
                    member.done.set_result(outcome.part(record.id for record in member.records))


def _next_group(members: list[_Member]) -> list[_Member]:
    """Take the next callers in their order, up to one that has an id of another or for whom there is no room."""
    ids: set[str] = set()
    group: list[_Member] = []
    for member in members:
        own = {record.id for record in member.records}
        if group and (len(ids) + len(own) > MAX_RECORDS or not ids.isdisjoint(own)):
            break
        ids |= own
        group.append(member)
    del members[: len(group)]
    return group


def _fail(group: Sequence[_Member], error: BaseException) -> None:
    for member in group:
        if member.done.done():
            continue
        if isinstance(error, asyncio.CancelledError):
            member.done.cancel()
        else:
            member.done.set_exception(error)
