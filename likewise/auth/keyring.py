"""KeyRing: whose key this is, asked of the database now and then and remembered in between."""

import asyncio
import hmac
import time
from datetime import UTC, datetime

from likewise.auth.caller import Caller, Scope
from likewise.auth.recent import Recent
from likewise.auth.tokens import digest_of, prefix_of
from likewise.db import keys
from likewise.db.pool import Pool

# A key that is revoked is taken for so long by a server that has just seen it.
REMEMBERED_SECONDS = 5.0
LOOKUPS_AT_ONCE = 2
MOST_REMEMBERED = 10_000

# What a key without a row is compared with, so that it takes the same way as a wrong one.
_NO_DIGEST = bytes(32)


class KeyRing:
    """The API keys, as one process sees them."""

    def __init__(self, pool: Pool, remembered_seconds: float = REMEMBERED_SECONDS) -> None:
        self._pool = pool
        self._seconds = remembered_seconds
        # By digest, so that a dump of this memory shows no key.
        self._known: Recent[bytes, Caller] = Recent(MOST_REMEMBERED)
        self._used: dict[str, datetime] = {}
        self._asking = asyncio.Semaphore(LOOKUPS_AT_ONCE)

    async def caller(self, token: str) -> Caller | None:
        """Whose key this is; None if it is none, or none that may be used."""
        prefix = prefix_of(token)
        if prefix is None:
            return None
        digest = digest_of(token)
        caller = self._known.get(digest) or await self._looked_up(prefix, digest)
        if caller is not None:
            self._used[prefix] = datetime.now(UTC)
        return caller

    async def flush(self) -> None:
        """Keep when keys were used last."""
        pending, self._used = self._used, {}
        if not pending:
            return
        try:
            await keys.used(self._pool, pending)
        except BaseException:
            # The next time, unless they were used again meanwhile.
            self._used = pending | self._used
            raise

    async def _looked_up(self, prefix: str, digest: bytes) -> Caller | None:
        # The time is that of the question: an answer may be old by the time it is here.
        until = time.monotonic() + self._seconds
        # Anybody can make up keys: these questions take few connections, however many come.
        async with self._asking:
            key = await keys.live(self._pool, prefix)
        if not hmac.compare_digest(_NO_DIGEST if key is None else key.digest, digest) or key is None:
            return None
        caller = Caller(key.tenant, frozenset(map(Scope, key.scopes)), prefix)
        self._known.keep(digest, caller, until)
        return caller
