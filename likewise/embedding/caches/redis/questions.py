"""The keys of many callers in few questions to a store."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context

from likewise.embedding.cache import Cached
from likewise.embedding.caches.redis.circuit import Circuit, answered_in
from likewise.stopping import stop

# Under way at a time; whoever comes meanwhile shares the next one, so that any number of callers costs little more.
MOST_QUESTIONS = 4
# Unpacking so many holds the event loop for some 3 ms.
MOST_KEYS = 512

Known = dict[bytes, Cached]


class _Question:
    def __init__(self) -> None:
        self.keys: dict[bytes, None] = {}
        self.answer: asyncio.Future[Known] = asyncio.get_running_loop().create_future()


class Questions:
    """Asks a store, and waits for it no longer than a circuit allows.

    A question is never cancelled because somebody waited enough: its connection would have to be thrown away with the
    answer that is still to come.
    """

    def __init__(self, fetch: Callable[[Sequence[bytes]], Awaitable[Known]], circuit: Circuit) -> None:
        self._fetch = fetch
        self._circuit = circuit
        self._gathered: deque[_Question] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def ask(self, keys: Sequence[bytes]) -> Known:
        """What the store knows of these keys, as far as it says so in time."""
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
        """The next question that has room, with this key in it."""
        if not self._gathered or len(self._gathered[-1].keys) >= MOST_KEYS:
            self._gathered.append(_Question())
        self._gathered[-1].keys[key] = None
        return self._gathered[-1]

    def _begin(self) -> None:
        if not self._circuit.closed:
            self._drop()
        while self._gathered and len(self._running) < MOST_QUESTIONS:
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
