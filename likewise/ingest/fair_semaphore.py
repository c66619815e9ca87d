"""A semaphore that is fair between tenants: whoever asks for much waits behind its own."""

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import AsyncIterator


class FairSemaphore:
    """A number of permits. Waiting tenants get one in turn, each for the first of its own callers."""

    def __init__(self, permits: int) -> None:
        self._free = permits
        self._waiting: OrderedDict[int, deque[asyncio.Future[None]]] = OrderedDict()

    @contextlib.asynccontextmanager
    async def permit(self, tenant: int) -> AsyncIterator[None]:
        """Wait for a permit, and hold it for the block."""
        if self._free > 0:
            self._free -= 1
        else:
            await self._wait(tenant)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, tenant: int) -> None:
        mine = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """Give a permit to the next tenant's first caller that has not left; keep it if there is none."""
        while self._waiting:
            tenant, queue = self._waiting.popitem(last=False)
            first = queue.popleft()
            if queue:
                self._waiting[tenant] = queue
            if not first.done():
                first.set_result(None)
                return
        self._free += 1
