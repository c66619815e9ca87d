"""The caller of a request: a tenant, and what may be done there; and tenants by name, as a JWT names them."""

import asyncio
import re
from dataclasses import dataclass
from enum import StrEnum

from cachetools import TTLCache

from likewise.db import collections, tenants
from likewise.db.pool import Pool
from likewise.errors import Forbidden

MAX_NAME_CHARACTERS = 512
# An id never changes; asking again now and then costs nothing, and heals a database that was put back.
REMEMBERED_SECONDS = 60.0
MAX_REMEMBERED = 10_000
LOOKUPS_AT_ONCE = 2

# Control characters, ends of lines, and halves of surrogate pairs.
_NO_NAME = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class Scope(StrEnum):
    """A right of a credential. None includes another, so that a sender may be given writing without reading."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


EVERY_SCOPE = frozenset(Scope)


@dataclass(frozen=True)
class Caller:
    """The tenant that a request acts for, its scopes, and the prefix of its API key if it came with one."""

    tenant: int
    scopes: frozenset[Scope]
    key: str | None = None


def is_name(name: str) -> bool:
    """Return whether a tenant may have this name. Names are never changed to fit: two that differ are two tenants."""
    return bool(name.strip()) and len(name) <= MAX_NAME_CHARACTERS and not _NO_NAME.search(name)


class Tenants:
    """The ids of tenants, as one process knows them.

    Args:
        declared: whether a tenant has to be there already.
    """

    def __init__(self, pool: Pool, *, declared: bool) -> None:
        self._pool = pool
        self._declared = declared
        self._known: TTLCache[str, int] = TTLCache(MAX_REMEMBERED, REMEMBERED_SECONDS)
        self._looking_up = asyncio.Semaphore(LOOKUPS_AT_ONCE)

    async def id_of(self, name: str) -> int:
        """Return the id of a tenant, which appears when it is first named; Forbidden if it had to be declared."""
        return self._known.get(name) or await self._look_up(name)

    async def _look_up(self, name: str) -> int:
        # A new tenant comes with many requests at once: they take few connections, and one question answers all.
        async with self._looking_up:
            if found := self._known.get(name):
                return found
            tenant = self._known[name] = await self._ask(name)
        return tenant

    async def _ask(self, name: str) -> int:
        if not self._declared:
            return await collections.tenant_named(self._pool, name)
        tenant = await tenants.known(self._pool, name)
        if tenant is None:
            raise Forbidden(
                "The tenant of this token is not declared here (LIKEWISE_TENANTS=declared). Whoever runs this server "
                "declares it: `likewise tenants add NAME`.",
                code="tenant_not_declared",
            )
        return tenant
