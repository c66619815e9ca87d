"""API keys, `lw_<prefix>_<secret>`: how they are made and read, and whose they are."""

import asyncio
import hashlib
import hmac
import re
import secrets
import string
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cachetools import TLRUCache

from likewise.auth.caller import Caller, Scope
from likewise.db import keys
from likewise.db.pool import Pool

PREFIX_LENGTH = 10
# Base 62: 43 characters hold 256 bits.
SECRET_LENGTH = 43

# A revoked key is accepted for so long by a server that has just seen it.
REMEMBERED_SECONDS = 5.0
LOOKUPS_AT_ONCE = 2
MAX_REMEMBERED = 10_000

_ALPHABET = string.digits + string.ascii_letters
_KEY = re.compile(rf"lw_([0-9A-Za-z]{{{PREFIX_LENGTH}}})_[0-9A-Za-z]{{{SECRET_LENGTH}}}")
# A key without a row is compared with it, so that it takes the same way as a wrong one.
_NO_DIGEST = bytes(32)


@dataclass(frozen=True)
class NewKey:
    """A key that was just made; its holder shows `token`, which is kept nowhere."""

    prefix: str
    token: str = field(repr=False)


def new_key() -> NewKey:
    """Make a key of 256 random bits."""
    prefix = "".join(secrets.choice(_ALPHABET) for _ in range(PREFIX_LENGTH))
    secret = "".join(secrets.choice(_ALPHABET) for _ in range(SECRET_LENGTH))
    return NewKey(prefix, f"lw_{prefix}_{secret}")


def prefix_of(token: str) -> str | None:
    """Return the part of a key that may be shown and that finds its row; None if this is not a key."""
    found = _KEY.fullmatch(token)
    return found[1] if found else None


def digest_of(token: str) -> bytes:
    """Return the SHA-256. A slow hash protects what people think up: nobody tries 2^256 keys, however fast each is."""
    return hashlib.sha256(token.encode()).digest()


class KeyRing:
    """The API keys as one process knows them: looked up in the database, and remembered for a moment."""

    def __init__(
        self,
        pool: Pool,
        remembered_seconds: float = REMEMBERED_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._seconds = remembered_seconds
        self._clock = clock
        # By digest, so that a dump of this memory shows no key.
        self._known: TLRUCache[bytes, tuple[Caller, float]] = TLRUCache(
            MAX_REMEMBERED, lambda _key, known, _now: known[1], timer=clock
        )
        self._used: dict[str, datetime] = {}
        self._looking_up = asyncio.Semaphore(LOOKUPS_AT_ONCE)

    async def caller(self, token: str) -> Caller | None:
        """Return the caller with this key; None if it is no key, or none that may be used."""
        prefix = prefix_of(token)
        if prefix is None:
            return None
        digest = digest_of(token)
        known = self._known.get(digest)
        caller = known[0] if known else await self._look_up(prefix, digest)
        if caller is not None:
            self._used[prefix] = datetime.now(UTC)
        return caller

    async def flush(self) -> None:
        """Store the times at which keys were used last."""
        pending, self._used = self._used, {}
        if not pending:
            return
        try:
            await keys.used(self._pool, pending)
        except BaseException:
            # The next time, unless they were used again meanwhile.
            self._used = pending | self._used
            raise

    async def _look_up(self, prefix: str, digest: bytes) -> Caller | None:
        # Counted from the question: an answer may be old by the time it is here.
        until = self._clock() + self._seconds
        # Anybody can make up keys: these questions take few connections, however many come.
        async with self._looking_up:
            key = await keys.live(self._pool, prefix)
        if not hmac.compare_digest(_NO_DIGEST if key is None else key.digest, digest) or key is None:
            return None
        caller = Caller(key.tenant, frozenset(map(Scope, key.scopes)), prefix)
        self._known[digest] = caller, until
        return caller
