"""Questions to a store that may be slow or away, and writes to it, behind a circuit breaker that looks by itself."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import Context
from itertools import islice
from typing import Any, Literal

from likewise.backoff import Backoff, Breaker
from likewise.embedding.cache import OVERHEAD, Cached
from likewise.observe import steps
from likewise.observe.logs import get_logger
from likewise.stopping import stop

CacheFault = Literal["away", "slow", "full", "refused"]

# For reading and unpacking a vector of 384 numbers: 512 of them took 8.5 ms, and 17 ms on a busy machine.
KEY_SECONDS = 0.000_05
# One late answer may have met a pause of the store, or of this process; so many in a row are no accident.
MAX_LATE = 3
# A look while all is well, so that an idle process learns of a fault before a request meets it.
HEARTBEAT_SECONDS = 5.0
LOOK_AGAIN = Backoff(0.1, 1.0)
# A question and its answer take about so many turns of the event loop, however long each is.
TURNS = 12

# Under way at a time; callers that come meanwhile share the next one, so that any number of them costs little more.
MAX_QUESTIONS = 4
# Unpacking so many holds the event loop for some 3 ms.
MAX_KEYS = 512

# Some 16,000 vectors of 384 numbers: what a processor embeds in half a minute.
MAX_BYTES = 32 * 2**20
# In one round trip; packing them holds the event loop for about 1 ms.
BATCH = 128
# Room in a full store comes by expiry or eviction, or by somebody who makes some.
WRITE_AGAIN = Backoff(0.5, 5.0)
LOOK_SECONDS = 0.05

Known = dict[bytes, Cached]
# A vector to write, or None for a key to delete.
Change = Cached | None
# Writes changes, and returns what kept each of the others from being written.
Write = Callable[[Mapping[bytes, Change]], Awaitable[Mapping[bytes, CacheFault]]]

log = get_logger(__name__)


async def answered_in(seconds: float, work: Iterable[asyncio.Future[Any]]) -> bool:
    """Return whether all work is done in that time; it is not cancelled if not.

    After the time it waits for a few turns of the loop: where the loop itself was busy, answers lie there unread.
    """
    waiting = set(work)
    if waiting:
        await asyncio.wait(waiting, timeout=seconds)
    for _ in range(TURNS):
        if all(one.done() for one in waiting):
            return True
        await asyncio.sleep(0)
    return all(one.done() for one in waiting)


class StoreCircuit:
    """Closed while the store is asked; open after a fault, until a look finds it well. No request waits for a look."""

    def __init__(
        self, look: Callable[[], Awaitable[object]], fault_of: Callable[[Exception], CacheFault], answer_seconds: float
    ) -> None:
        """Guard a store.

        Args:
            look: asks the store for something small.
            fault_of: names the fault of an error.
            answer_seconds: the longest that an answer may take.
        """
        self._ask = look
        self._fault_of = fault_of
        self._answer_seconds = answer_seconds
        self._breaker = Breaker[CacheFault](LOOK_AGAIN, MAX_LATE)
        self._opened = asyncio.Event()
        self._closed = asyncio.Event()
        self._closed.set()

    @property
    def fault(self) -> CacheFault | None:
        """The fault for which the store is not asked."""
        return self._breaker.fault

    @property
    def closed(self) -> bool:
        """True while the store is asked."""
        return self._breaker.fault is None

    def allowed_seconds(self, keys: int) -> float:
        """Return how long a question about so many keys may take."""
        return self._answer_seconds + keys * KEY_SECONDS

    async def until_closed(self) -> None:
        """Wait until the store is asked."""
        await self._closed.wait()

    def answered(self) -> None:
        """Note an answer that came in time."""
        if self.closed:
            self._breaker.succeeded()

    def late(self) -> None:
        """Note an answer that did not come in time."""
        steps.cache_failed("slow")
        if self.closed:
            self._failed("slow", at_once=False)

    def failed(self, error: Exception) -> None:
        """Note an error of the store; only its kind is logged, for its words may have a password."""
        fault = self._fault_of(error)
        steps.cache_failed(fault)
        if self.closed:  # else others of the same outage would lengthen the pause between two looks
            self._failed(fault)

    async def watch(self) -> None:
        """Look now and then while closed, and until it is well while open; does not end by itself."""
        while True:
            fault = await self._look()
            if fault is None:
                self._close()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(HEARTBEAT_SECONDS):
                        await self._opened.wait()
            else:
                self._failed(fault)
                await asyncio.sleep(self._breaker.left)

    async def _look(self) -> CacheFault | None:
        """Look a few times, as the first may have to connect, and this process may be busy."""
        for _ in range(MAX_LATE):
            asking = asyncio.ensure_future(self._ask())
            try:
                in_time = await answered_in(self._answer_seconds, [asking])
                await asking
            except Exception as error:  # noqa: BLE001 - whatever it is, the store is no help
                return self._fault_of(error)
            finally:
                asking.cancel()
            if in_time:
                return None
        return "slow"

    def _failed(self, fault: CacheFault, *, at_once: bool = True) -> None:
        was_closed = self.closed
        if self._breaker.failed(fault, at_once=at_once):
            if was_closed:
                log.warning("cache_away", tier="redis", reason=fault)
            self._closed.clear()
            self._opened.set()

    def _close(self) -> None:
        if self._breaker.succeeded():
            log.warning("cache_back", tier="redis")
        self._opened.clear()
        self._closed.set()


class _Question:
    def __init__(self) -> None:
        self.keys: dict[bytes, None] = {}
        self.answer: asyncio.Future[Known] = asyncio.get_running_loop().create_future()


class StoreQuestions:
    """The keys of many callers in few questions to a store, awaited no longer than a circuit allows.

    A question is never cancelled because a caller waited enough: its connection would have to be thrown away with the
    answer that is still to come.
    """

    def __init__(self, fetch: Callable[[Sequence[bytes]], Awaitable[Known]], circuit: StoreCircuit) -> None:
        self._fetch = fetch
        self._circuit = circuit
        self._gathered: deque[_Question] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def ask(self, keys: Sequence[bytes]) -> Known:
        """Return the rows of these keys that the store answers in time."""
        questions = {self._with(key) for key in keys}
        self._begin()
        await answered_in(self._circuit.allowed_seconds(len(keys)), (one.answer for one in questions))
        known = {key: row for one in questions if one.answer.done() for key, row in one.answer.result().items()}
        return {key: known[key] for key in keys if key in known}

    async def close(self) -> None:
        """Ask no more."""
        self._drop()
        await stop(self._running)

    def _with(self, key: bytes) -> _Question:
        """Put a key in the next question that has room, and return that."""
        if not self._gathered or len(self._gathered[-1].keys) >= MAX_KEYS:
            self._gathered.append(_Question())
        self._gathered[-1].keys[key] = None
        return self._gathered[-1]

    def _begin(self) -> None:
        if not self._circuit.closed:
            self._drop()
        while self._gathered and len(self._running) < MAX_QUESTIONS:
            # In a context of its own: it is no part of the request that happened to come first.
            task = asyncio.create_task(self._run(self._gathered.popleft()), context=Context())
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._begin()

    def _drop(self) -> None:
        while self._gathered:
            self._gathered.popleft().answer.set_result({})

    async def _run(self, question: _Question) -> None:
        asking = asyncio.ensure_future(self._fetch(list(question.keys)))
        try:
            in_time = await answered_in(self._circuit.allowed_seconds(len(question.keys)), [asking])
            if not in_time:
                self._circuit.late()
                self._begin()
            question.answer.set_result(await asking)
            if in_time:
                self._circuit.answered()
        except Exception as error:  # noqa: BLE001 - whatever it is, the store is no help
            self._circuit.failed(error)
        finally:
            asking.cancel()
            if not question.answer.done():
                question.answer.set_result({})


class StoreWrites:
    """Changes that wait to be written, the newest of each key; a vector that does not fit is dropped and counted.

    A deletion is never dropped: its text would be served again.
    """

    def __init__(self, write: Write, circuit: StoreCircuit) -> None:
        self._write = write
        self._circuit = circuit
        self.waiting: dict[bytes, Change] = {}
        self._some = asyncio.Event()
        self._settled = asyncio.Condition()
        self._failures = 0
        self.bytes = 0
        self.dropped = 0
        self.fault: CacheFault | None = None

    def add(self, key: bytes, change: Change) -> None:
        """Write a change some time soon."""
        deletes = key in self.waiting and self.waiting[key] is None
        self._remove(key)
        if change is not None and self.bytes + _size(change) > MAX_BYTES:
            self.dropped += 1
            steps.cache_dropped()
            if not deletes:
                return
            change = None
        self.waiting[key] = change
        self.bytes += _size(change)
        self._some.set()

    async def run(self) -> None:
        """Write changes while the store is well; does not end by itself."""
        while True:
            await self._some.wait()
            await self._circuit.until_closed()
            try:
                await self._write_some()
            except Exception as error:  # noqa: BLE001 - whatever it is, the store is no help
                self._circuit.failed(error)
            async with self._settled:
                self._settled.notify_all()
            if self.fault is not None:
                await asyncio.sleep(WRITE_AGAIN.pause(self._failures))

    async def flush(self, seconds: float) -> int:
        """Wait so long for all to be written, less where the store takes nothing; return how many are not."""
        try:
            async with asyncio.timeout(seconds), self._settled:
                await self._settled.wait_for(lambda: not self.waiting or self.fault is not None)
        except TimeoutError:
            pass
        return len(self.waiting)

    async def written(self, keys: Iterable[bytes], seconds: float) -> None:
        """Wait so long for these keys to be written, and no longer than the store is well."""
        left = set(keys) & self.waiting.keys()
        ends = time.monotonic() + seconds
        while left and self.fault is None and self._circuit.closed and time.monotonic() < ends:
            # A store that hangs settles nothing: the circuit finds that out meanwhile.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS), self._settled:
                    await self._settled.wait()
            left &= self.waiting.keys()

    def drop_vectors(self) -> None:
        """Forget the vectors that wait to be written. One that may be on its way to the store is deleted there."""
        for key in [key for key, change in self.waiting.items() if change is not None]:
            self.add(key, None)

    async def _write_some(self) -> None:
        # While the store takes nothing, one is enough to find out whether it does again.
        batch = dict(islice(self.waiting.items(), 1 if self.fault else BATCH))
        refused = await self._write(batch)
        for key, change in batch.items():
            if key not in self.waiting or self.waiting[key] is not change:
                continue
            self._remove(key)
            if key in refused:
                # Behind the others, in case it is this one alone.
                self.add(key, change)
        self.fault = next(iter(refused.values()), None)
        self._failures = 0 if self.fault is None else self._failures + 1
        if self.fault is not None:
            steps.cache_failed(self.fault)

    def _remove(self, key: bytes) -> None:
        if key in self.waiting:
            self.bytes -= _size(self.waiting.pop(key))
        if not self.waiting:
            self._some.clear()


def _size(change: Change) -> int:
    return OVERHEAD if change is None else change.memory_bytes
