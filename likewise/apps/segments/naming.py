"""What tenants are called: points are worked out of it, and hits tell it."""

import math

from likewise.auth.recent import Recent
from likewise.db import segments
from likewise.db.pool import Pool

MOST_REMEMBERED = 10_000


class TenantNames:
    """The names of tenants, which do not change: each is asked for once, unless there are very many."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._known: Recent[int, str] = Recent(MOST_REMEMBERED)

    async def of(self, tenant: int) -> str:
        """What this tenant is called."""
        known = self._known.get(tenant)
        if known is None:
            async with self._pool.tenant(tenant, snapshot=True) as tx:
                known = await segments.tenant_name(tx)
            self._known.keep(tenant, known, math.inf)
        return known
