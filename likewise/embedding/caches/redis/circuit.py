"""Whether a store that may be slow or away is asked, and a look in the background whether it is well again."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal

from likewise.observe import steps
from likewise.observe.logs import get_logger

CacheTrouble = Literal["away", "slow", "full", "refused"]

# What a caller waits at most for an answer that takes a Redis on the same network less than 1 ms.
ANSWER_SECONDS = 0.010
# For reading and unpacking a vector of 384 numbers: 512 of them took 8.5 ms, and 17 ms on a busy machine.
KEY_SECONDS = 0.000_05
# One late answer may have met a pause of the store, or of this process; so many in a row are no accident.
MOST_LATE = 3
# A look while all is well, so that an idle process learns of trouble before a request meets it.
HEARTBEAT_SECONDS = 5.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 1.0
# A question and its answer take about so many turns of the event loop, however long each is.
TURNS = 12

log = get_logger(__name__)


async def answered_in(seconds: float, work: Iterable[asyncio.Future[Any]]) -> bool:
    """Whether all of it is done in that time; it is not cancelled if not.

    After the time it looks a few turns of the loop further: where the loop itself was busy, answers lie there unread.
    """
    waiting = set(work)
    if waiting:
        await asyncio.wait(waiting, timeout=seconds)
    for _ in range(TURNS):
        if all(one.done() for one in waiting):
            return True
        await asyncio.sleep(0)
    return all(one.done() for one in waiting)


class Circuit:
    """Closed while the store is asked; open after trouble, until a look finds it well. No request waits for that."""

    def __init__(
        self,
        look: Callable[[], Awaitable[object]],
        trouble_of: Callable[[Exception], CacheTrouble],
        *,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        """Around a store.

        Args:
            look: asks the store for something small.
            trouble_of: what an error of it means.
            answer_seconds: how long an answer may take.
        """
        self._look_at = look
        self._trouble_of = trouble_of
        self._answer_seconds = answer_seconds
        self._late = 0
        self._opened = asyncio.Event()
        self._closed = asyncio.Event()
        self._closed.set()
        self.trouble: CacheTrouble | None = None

    @property
    def closed(self) -> bool:
        """Whether the store is asked."""
        return self.trouble is None

    def allowed_seconds(self, keys: int) -> float:
        """How long a question about so many keys may take."""
        return self._answer_seconds + keys * KEY_SECONDS

    async def until_closed(self) -> None:
        """Until the store is asked."""
        await self._closed.wait()

    def answered(self) -> None:
        """An answer came in time."""
        self._late = 0

    def late(self) -> None:
        """One did not."""
        steps.cache_failed("slow")
        self._late += 1
        if self._late >= MOST_LATE:
            self._open("slow")

    def failed(self, error: Exception) -> None:
        """The store could not be asked; of the error only its kind is told, for its words may name a password."""
        trouble = self._trouble_of(error)
        steps.cache_failed(trouble)
        self._open(trouble)

    async def watch(self) -> None:
        """Look now and then while closed, and until it is well while open; does not end by itself."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            trouble = await self._look()
            if trouble is None:
                pause = FIRST_PAUSE_SECONDS
                self._close()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(HEARTBEAT_SECONDS):
                        await self._opened.wait()
            else:
                self._open(trouble)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _look(self) -> CacheTrouble | None:
        """The best of a few tries: the first may have to connect, and this process may be busy."""
        for _ in range(MOST_LATE):
            asking = asyncio.ensure_future(self._look_at())
            try:
                in_time = await answered_in(self._answer_seconds, [asking])
                await asking
            except Exception as error:  # noqa: BLE001 - whatever it is, the store is no help
                return self._trouble_of(error)
            finally:
                asking.cancel()
            if in_time:
                return None
        return "slow"

    def _open(self, trouble: CacheTrouble) -> None:
        if self.trouble is None:
            log.warning("cache_away", tier="redis", reason=trouble)
        self.trouble = trouble
        self._closed.clear()
        self._opened.set()

    def _close(self) -> None:
        if self.trouble is not None:
            log.warning("cache_back", tier="redis")
        self.trouble = None
        self._late = 0
        self._opened.clear()
        self._closed.set()
