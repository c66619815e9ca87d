"""API keys as rows: the owner makes and revokes them, the role that serves looks them up."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from psycopg.sql import SQL

from likewise.db.pool import Pool
from likewise.errors import NotFound

LIVE = SQL("SELECT digest, tenant, scopes FROM live_api_key(%s)")
ANY = SQL("SELECT any_api_key()")
USED = SQL("SELECT api_keys_used(%s::text[], %s::timestamptz[])")

MAKE = SQL("""
    INSERT INTO api_keys (prefix, digest, tenant, name, scopes, expires_at)
    VALUES (%s, %s, tenant_named(%s), %s, %s::text[], now() + make_interval(days => %s::int))
""")
LIST = SQL("""
    SELECT k.prefix, t.name, k.name, k.scopes, k.created_at, k.expires_at, k.last_used_at, k.revoked_at
    FROM api_keys k JOIN tenants t ON t.id = k.tenant
    WHERE t.name = coalesce(%s::text, t.name) ORDER BY t.name, k.created_at, k.prefix
""")
REVOKE = SQL("UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE prefix = %s RETURNING prefix")


@dataclass(frozen=True)
class KeyRow:
    """A key as administrators see it, without its secret part."""

    prefix: str
    tenant: str
    name: str | None
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True)
class LiveKey:
    """The tenant and the scopes of a key that may be used, and the SHA-256 that it must have."""

    digest: bytes
    tenant: int
    scopes: frozenset[str]


async def live(pool: Pool, prefix: str) -> LiveKey | None:
    """Return the key of this prefix; None if there is none, or none that may be used any more."""
    row = await pool.row(LIVE, prefix)
    return None if row is None else LiveKey(bytes(row[0]), int(row[1]), frozenset(row[2]))


async def any_live(pool: Pool) -> bool:
    """Return whether any key may be used."""
    return await pool.row(ANY) == (True,)


async def used(pool: Pool, times: Mapping[str, datetime]) -> None:
    """Record when keys, by prefix, were used last."""
    await pool.rows(USED, list(times), list(times.values()))


async def make(
    owner: Pool,
    tenant: str,
    *,
    prefix: str,
    digest: bytes,
    scopes: frozenset[str],
    name: str | None = None,
    days: int | None = None,
) -> None:
    """Store a key for a tenant, which appears with its first one; `days` from now it ends."""
    async with owner.nobody() as tx:
        await tx.execute(MAKE, [prefix, digest, tenant, name, sorted(scopes), days])


async def listed(owner: Pool, tenant: str | None = None) -> list[KeyRow]:
    """List all keys, or those of one tenant, the revoked ones too."""
    return [KeyRow(*row) for row in await owner.rows(LIST, tenant)]


async def revoke(owner: Pool, prefix: str) -> None:
    """End a key; NotFound if there is none of this prefix. One that is revoked already stays as it is."""
    if await owner.row(REVOKE, prefix) is None:
        raise NotFound("There is no key of this prefix. `likewise keys list` shows those there are.")
