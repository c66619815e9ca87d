"""Authentication: the caller of a request, by the ways that `LIKEWISE_AUTH` names."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from likewise.auth.api_keys import KeyRing, prefix_of
from likewise.auth.caller import EVERY_SCOPE, Caller
from likewise.db import collections, keys
from likewise.db.pool import Pool
from likewise.errors import Unauthorized
from likewise.observe.logs import get_logger
from likewise.settings import Settings

if TYPE_CHECKING:
    from likewise.auth.signed_tokens import SignedTokens

# The credential that each way asks for.
_CREDENTIALS = {
    "keys": "Send a valid API key as `Authorization: Bearer lw_...`. `likewise keys create` makes one.",
    "dev": "Send a valid token as `Authorization: Bearer ...`. `likewise token` makes one.",
    "jwks": "Send a valid token of this server's issuer as `Authorization: Bearer ...`.",
}
_BEARER = re.compile(r"bearer +([!-~]+)", re.IGNORECASE)

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
        """The reason for which no token of the issuer can be checked."""
        return self._tokens.keys.fault if self._tokens else None

    async def caller(self, authorization: Sequence[str], api_key: Sequence[str]) -> Caller:
        """Return the caller who sent these headers; Unauthorized if that is not clear."""
        if not self._asks:
            return await self._anyone()
        credential = credential_of(authorization, api_key)
        caller = None
        if credential is not None:
            caller = await self._holder(credential, as_key=any(map(str.strip, api_key)))
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
            self._tokens.keys.fetch_ahead()

    async def flush(self) -> None:
        """Store what was counted in memory."""
        await self._keys.flush()

    async def close(self) -> None:
        """End what is under way."""
        if self._tokens is not None:
            await self._tokens.keys.close()

    async def _holder(self, credential: str, *, as_key: bool) -> Caller | None:
        """Return who holds it. `X-API-Key` is for keys: what it is logged as elsewhere, a token is not."""
        if prefix_of(credential) is not None:
            return await self._keys.caller(credential) if "keys" in self._ways else None
        return None if self._tokens is None or as_key else await self._tokens.caller(credential)

    async def _anyone(self) -> Caller:
        if self._anybody is None:
            tenant = await collections.tenant_named(self._pool, self._only_tenant)
            self._anybody = Caller(tenant, EVERY_SCOPE)
        return self._anybody


def credential_of(authorization: Sequence[str], api_key: Sequence[str]) -> str | None:
    """Return the one credential in the `Authorization: Bearer` and `X-API-Key` headers of a request.

    None if there is none, or if there are two that differ. A scheme other than Bearer is for somebody before us.
    """
    bearers = (_BEARER.fullmatch(value.strip()) for value in authorization)
    found = {*(bearer[1] for bearer in bearers if bearer), *(value.strip() for value in api_key if value.strip())}
    return found.pop() if len(found) == 1 else None


def _signed_tokens(pool: Pool, settings: Settings) -> "SignedTokens | None":
    """Open what checks tokens where they are asked for: to import it takes a fifth of a second."""
    if not {"dev", "jwks"} & set(settings.auth):
        return None
    from likewise.auth.signed_tokens import SignedTokens  # noqa: PLC0415

    return SignedTokens.of(pool, settings)
