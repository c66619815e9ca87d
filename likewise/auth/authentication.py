"""Authentication: decides who calls, by the ways that `LIKEWISE_AUTH` names."""

from collections.abc import Sequence

from likewise.auth.caller import EVERY_SCOPE, Caller
from likewise.auth.keyring import KeyRing
from likewise.auth.tokens import token_of
from likewise.db import collections, keys
from likewise.db.pool import Pool
from likewise.errors import Unauthorized
from likewise.observe.logs import get_logger
from likewise.settings import Settings

# One sentence for every reason: which keys there are is nobody's business.
REFUSAL = "Send a valid API key as `Authorization: Bearer lw_...`. `likewise keys create` makes one."

log = get_logger(__name__)


class Authentication:
    """Credentials in, a caller out.

    Args:
        only_tenant: the tenant of every caller where nobody is asked who they are.
    """

    def __init__(self, pool: Pool, settings: Settings, only_tenant: str) -> None:
        self._pool = pool
        self._asks = settings.asks_who_calls
        self._only_tenant = only_tenant
        self._anybody: Caller | None = None
        self._keys = KeyRing(pool)

    async def caller(self, authorization: Sequence[str], api_key: Sequence[str]) -> Caller:
        """Who sent these headers; Unauthorized if that is not clear."""
        if not self._asks:
            return await self._anyone()
        token = token_of(authorization, api_key)
        caller = None if token is None else await self._keys.caller(token)
        if caller is None:
            raise Unauthorized(REFUSAL)
        return caller

    async def warn_if_nobody_can_call(self) -> None:
        """Log it if there is no key; that is no reason not to start, for the first may be made while it runs."""
        if self._asks and not await keys.any_live(self._pool):
            log.warning("no_api_key", mend="likewise keys create --tenant NAME")

    async def flush(self) -> None:
        """Keep what was counted in memory."""
        await self._keys.flush()

    async def _anyone(self) -> Caller:
        if self._anybody is None:
            tenant = await collections.tenant_named(self._pool, self._only_tenant)
            self._anybody = Caller(tenant, EVERY_SCOPE)
        return self._anybody
