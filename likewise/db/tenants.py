"""Tenants as rows: the owner declares and lists them, the role that serves asks for one by its name."""

from dataclasses import dataclass
from datetime import datetime

from psycopg.sql import SQL

from likewise.db.pool import Pool

KNOWN = SQL("SELECT tenant_known(%s)")
DECLARE = SQL("INSERT INTO tenants (name) VALUES (%s) ON CONFLICT (name) DO NOTHING RETURNING id")
LIST = SQL("""
    SELECT t.name, t.created_at, count(c.id) FROM tenants t LEFT JOIN collections c ON c.tenant = t.id
    GROUP BY t.id ORDER BY t.name
""")


@dataclass(frozen=True)
class TenantRow:
    """A tenant as administrators see it."""

    name: str
    created_at: datetime
    collections: int


async def known(pool: Pool, name: str) -> int | None:
    """Return the id of a tenant that is there; None if there is none of this name."""
    row = await pool.row(KNOWN, name)
    return None if row is None or row[0] is None else int(row[0])


async def declare(owner: Pool, name: str) -> bool:
    """Make a tenant, and return whether it is new."""
    return await owner.row(DECLARE, name) is not None


async def listed(owner: Pool) -> list[TenantRow]:
    """List all tenants, each with the number of its collections."""
    return [TenantRow(*row) for row in await owner.rows(LIST)]
