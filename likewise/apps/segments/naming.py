"""What tenants are called: points are worked out of it, and hits tell it."""

from likewise.db import segments
from likewise.db.pool import Pool


class TenantNames:
    """The names of tenants, each asked for once: they do not change."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._known: dict[int, str] = {}

    async def of(self, tenant: int) -> str:
        """What this tenant is called."""
        if tenant not in self._known:
            async with self._pool.tenant(tenant, snapshot=True) as tx:
                self._known[tenant] = await segments.tenant_name(tx)
        return self._known[tenant]
