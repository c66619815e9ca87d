"""The names of tenants: points are worked out of them, and hits have them."""

from cachetools import LRUCache

from likewise.apps.segments import rows
from likewise.db.pool import Pool

MAX_REMEMBERED = 10_000


class TenantNames:
    """The names of tenants, which do not change: each is asked for once, unless there are very many."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._known: LRUCache[int, str] = LRUCache(MAX_REMEMBERED)

    async def of(self, tenant: int) -> str:
        """Return the name of a tenant."""
        known = self._known.get(tenant)
        if known is None:
            async with self._pool.tenant(tenant, snapshot=True) as tx:
                known = await rows.tenant_name(tx)
            self._known[tenant] = known
        return known
