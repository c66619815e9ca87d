"""Claims: what is one worker's for as long as it renews a lease."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from datetime import timedelta
from typing import TypeVar
from uuid import uuid4

from likewise.db import waiting
from likewise.db.pool import Pool, retried
from likewise.errors import DatabaseUnavailable, LikewiseError
from likewise.stopping import stop

# A database that is away is tried again this often.
AWAY_SECONDS = 1.0
# A statement that was cut off may hold its rows until the server has ended it; after this the lease has to run out.
GIVE_BACK_SECONDS = 5.0
HELD_SECONDS = 0.05
RETRY_AFTER = timedelta(seconds=2)

T = TypeVar("T")


class Claim:
    """Entries of the queue that one worker has leased."""

    def __init__(self, pool: Pool, lease: timedelta) -> None:
        self.id = uuid4()
        self.lease = lease
        self._pool = pool

    @contextlib.asynccontextmanager
    async def given_back(self) -> AsyncIterator[None]:
        """Give all back when the block ends early (stopping, a database that is away): nobody waits for the lease."""
        try:
            yield
        except BaseException:
            await asyncio.shield(self._give_back())
            raise

    @contextlib.asynccontextmanager
    async def renewed(self, tenants: Collection[int]) -> AsyncIterator[None]:
        """Keep the entries of these tenants for as long as the block runs."""

        async def renew() -> None:
            for tenant in tenants:
                with contextlib.suppress(LikewiseError):
                    async with self._pool.tenant(tenant) as tx:
                        await waiting.renew(tx, self.id, self.lease)

        async with renewing(renew, self.lease):
            yield

    async def release(self, tenant: int, generation: int, contents: Sequence[int]) -> None:
        """Give entries back that failed through no fault of their texts."""
        async with self._pool.tenant(tenant) as tx:
            await waiting.release(tx, generation, contents, self.id, after=RETRY_AFTER)

    async def set_aside(self, tenant: int, generation: int, contents: Sequence[int], error: str, tries: int) -> None:
        """Have entries tried by themselves whose texts failed; those that have so many `tries` behind them fail."""
        async with self._pool.tenant(tenant) as tx:
            await waiting.set_aside(tx, generation, contents, self.id, error=error, tries=tries)

    async def _give_back(self) -> None:
        deadline = time.monotonic() + GIVE_BACK_SECONDS
        with contextlib.suppress(LikewiseError):
            while await waiting.give_back(self._pool, [self.id]):
                if time.monotonic() > deadline:
                    return
                await asyncio.sleep(HELD_SECONDS)


@contextlib.asynccontextmanager
async def renewing(renew: Callable[[], Awaitable[None]], lease: timedelta) -> AsyncIterator[None]:
    """Renew a lease three times in its length for as long as the block runs."""

    async def keep() -> None:
        while True:
            await asyncio.sleep(lease.total_seconds() / 3)
            await renew()

    task = asyncio.create_task(keep())
    try:
        yield
    finally:
        await stop([task])


async def through_outage(write: Callable[[], Awaitable[T]], lease: timedelta) -> T:
    """Try a write again while the database is away, for as long as the lease can last."""
    deadline = time.monotonic() + lease.total_seconds()
    while True:
        try:
            return await retried(write)
        except DatabaseUnavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(AWAY_SECONDS)
