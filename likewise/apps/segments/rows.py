"""Rows of document segments: the texts that they hold, the place of a part, and the names of their tenants."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cachetools import LRUCache
from psycopg.sql import SQL

from likewise.db.pool import Pool
from likewise.db.transaction import Tx

# Whoever writes a segment holds its place against others that write it: what it is found to hold stays so until the
# commit. The places are few, so that a large batch takes no more locks than a database has.
PLACES = 64
HOLD = SQL("SELECT pg_advisory_xact_lock(7723, place) FROM unnest(%s::int[]) AS place")
STORED = SQL("""
    SELECT r.id, r.content, c.text_hash, c.state = 'failed', r.payload
    FROM records r JOIN contents c ON c.pk = r.content WHERE r.collection = %s AND r.id = ANY (%s::text[])
""")
# A client's own segments may have any other names.
BEYOND = SQL("""
    SELECT pk, content FROM records
    WHERE collection = %s AND parent = %s AND payload ->> 'segment_id' ~ '^chunk_[0-9]+$' AND id <> ALL (%s::text[])
""")
OF_KIND = SQL("SELECT name FROM collections WHERE kind = %s ORDER BY name")
TENANT_NAME = SQL("SELECT name FROM tenants WHERE id = %s")
MAX_NAMES = 10_000


@dataclass(frozen=True)
class StoredPart:
    """A segment as it stands: its content, the digest of its text and whether that has failed, and its payload."""

    content: int
    text_hash: bytes
    failed: bool
    payload: dict[str, Any]


async def hold(tx: Tx, collection: int, records: Sequence[str], places: Sequence[int]) -> dict[str, StoredPart]:
    """Lock and return those of the records that are there: nobody else writes them until the transaction ends.

    Args:
        places: of each record, any number that is the same for all who write it.
    """
    keys = sorted({(collection * PLACES + place % PLACES) % 2**31 for place in places})
    await tx.execute(HOLD, [keys])
    rows = await tx.rows(STORED, [collection, list(records)])
    return {
        str(id_): StoredPart(int(content), bytes(key), failed, payload) for id_, content, key, failed, payload in rows
    }


async def beyond(tx: Tx, collection: int, asset: str, kept: Sequence[str]) -> list[tuple[int, int]]:
    """Return the parts of a document that its new split does not have, as records, each with its content."""
    rows = await tx.rows(BEYOND, [collection, asset, list(kept)])
    return [(int(pk), int(content)) for pk, content in rows]


async def collections_of_kind(tx: Tx, kind: str) -> list[str]:
    """List the names of this tenant's collections of a kind."""
    return [str(row[0]) for row in await tx.rows(OF_KIND, [kind])]


async def tenant_name(tx: Tx) -> str:
    """Return the name of this tenant."""
    row = await tx.row(TENANT_NAME, [tx.tenant])
    return str(row[0]) if row else ""


class TenantNames:
    """The names of tenants, which do not change: each is asked for once, unless there are very many."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._known: LRUCache[int, str] = LRUCache(MAX_NAMES)

    async def of(self, tenant: int) -> str:
        """Return the name of a tenant."""
        known = self._known.get(tenant)
        if known is None:
            async with self._pool.tenant(tenant, snapshot=True) as tx:
                known = await tenant_name(tx)
            self._known[tenant] = known
        return known
