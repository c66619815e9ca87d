"""Collections as they were a moment ago, so that not every search begins with a question for its collection."""

import time
from collections.abc import Callable

from likewise.db import collections
from likewise.db.collections import Collection
from likewise.db.pool import Pool

# A collection's model and policy never change; its index, its background and its counts may be so old.
RECENT_SECONDS = 1.0
MOST_RECENT = 1_000


class RecentCollections:
    """Remembers collections for a second. Who finds one gone, or nothing in it, forgets it and asks again."""

    def __init__(self, pool: Pool, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self._clock = clock
        self._known: dict[tuple[int, str], tuple[float, Collection]] = {}

    async def named(self, tenant: int, name: str) -> Collection:
        """The collection of this name; NotFound if this tenant has none."""
        if self.knows(tenant, name):
            return self._known[tenant, name][1]
        asked = self._clock()
        async with self._pool.tenant(tenant) as tx:
            found = await collections.named(tx, name)
        if len(self._known) >= MOST_RECENT:
            self._known.clear()
        self._known[tenant, name] = asked, found
        return found

    def knows(self, tenant: int, name: str) -> bool:
        """Whether it was asked for a moment ago."""
        known = self._known.get((tenant, name))
        return known is not None and self._clock() - known[0] < RECENT_SECONDS

    def forget(self, tenant: int, name: str) -> None:
        """Ask anew the next time."""
        self._known.pop((tenant, name), None)
