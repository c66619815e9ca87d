"""Authentication: decides who calls, by the ways that `LIKEWISE_AUTH` names."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from likewise.auth.caller import EVERY_SCOPE, Caller
from likewise.auth.keyring import KeyRing
from likewise.auth.tokens import prefix_of, token_of
from likewise.db import collections, keys
from likewise.db.pool import Pool
from likewise.errors import Unauthorized
from likewise.observe.logs import get_logger
from likewise.settings import Settings

if TYPE_CHECKING:
    from likewise.auth.signed_tokens import SignedTokens

# What each way asks for.
_CREDENTIALS = {
    "keys": "Send a valid API key as `Authorization: Bearer lw_...`. `likewise keys create` makes one.",
    "dev": "Send a valid token as `Authorization: Bearer ...`. `likewise token` makes one.",
    "jwks": "Send a valid token of this server's issuer as `Authorization: Bearer ...`.",
}

log = get_logger(__name__)


class Authentication:
    """Credentials in, a caller out.

    Args:
        only_tenant: the tenant of every caller where nobody is asked who they are.
    """

    def __init__(self, pool: Pool, settings: Settings, only_tenant: str) -> None:
        self._pool = pool
        self._ways = settings.auth
        self._asks = settings.asks_who_calls
        self._only_tenant = only_tenant
        self._anybody: Caller | None = None
        self._keys = KeyRing(pool)
        self._tokens = _signed_tokens(pool, settings)
        # One sentence for every reason: which keys there are, and what is wrong with a token, is nobody's business.
        self._refusal = " Or: ".join(words for way, words in _CREDENTIALS.items() if way in self._ways)

    @property
    def issuer_fault(self) -> str | None:
        """Why no token of the issuer can be checked."""
        return self._tokens.issuer_fault if self._tokens else None

    async def caller(self, authorization: Sequence[str], api_key: Sequence[str]) -> Caller:
        """Who sent these headers; Unauthorized if that is not clear."""
        if not self._asks:
            return await self._anyone()
        token = token_of(authorization, api_key)
        caller = None if token is None else await self._holder(token, as_key=any(map(str.strip, api_key)))
        if caller is None:
            raise Unauthorized(self._refusal)
        return caller

    async def warn_if_nobody_can_call(self) -> None:
        """Log it if there is no key; that is no reason not to start, for the first may be made while it runs."""
        if self._ways == ("keys",) and not await keys.any_live(self._pool):
            log.warning("no_api_key", fix="likewise keys create --tenant NAME")

    def fetch_ahead(self) -> None:
        """Ask the issuer for its keys before the first caller needs them, and wait for nothing."""
        if self._tokens is not None:
            self._tokens.fetch_ahead()

    async def flush(self) -> None:
        """Keep what was counted in memory."""
        await self._keys.flush()

    async def close(self) -> None:
        """End what is under way."""
        if self._tokens is not None:
            await self._tokens.close()

    async def _holder(self, token: str, *, as_key: bool) -> Caller | None:
        """Whose credential this is. `X-API-Key` is for keys: what it is logged as elsewhere, a token is not."""
        if prefix_of(token) is not None:
            return await self._keys.caller(token) if "keys" in self._ways else None
        return None if self._tokens is None or as_key else await self._tokens.caller(token)

    async def _anyone(self) -> Caller:
        if self._anybody is None:
            tenant = await collections.tenant_named(self._pool, self._only_tenant)
            self._anybody = Caller(tenant, EVERY_SCOPE)
        return self._anybody


def _signed_tokens(pool: Pool, settings: Settings) -> "SignedTokens | None":
    """Tokens are checked where they are asked for: to import what checks them takes a fifth of a second."""
    if not {"dev", "jwks"} & set(settings.auth):
        return None
    from likewise.auth.signed_tokens import SignedTokens  # noqa: PLC0415

    return SignedTokens(pool, settings)
