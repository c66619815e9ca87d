"""Turns of tenants: whoever asks for much waits behind its own."""

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import AsyncIterator


class Turns:
    """As a semaphore, but the waiting tenants are served one after the other, each with the first of its own."""

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._waiting: OrderedDict[int, deque[asyncio.Future[None]]] = OrderedDict()

    @contextlib.asynccontextmanager
    async def turn(self, tenant: int) -> AsyncIterator[None]:
        """Wait for a turn, and have it for the block."""
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
        """Give a turn to the next tenant's first that has not left; keep it if there is none."""
        while self._waiting:
            tenant, queue = self._waiting.popitem(last=False)
            first = queue.popleft()
            if queue:
                self._waiting[tenant] = queue
            if not first.done():
                first.set_result(None)
                return
        self._free += 1
