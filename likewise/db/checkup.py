"""What the catalogues and statistics of Postgres tell of its health, for metrics and `likewise doctor`.

Nothing here reads a row of a tenant's, and all of it costs as little with thousands of collections.
"""

from psycopg.sql import SQL

from likewise.db.pool import Pool

# Counted by the statistics: to count the rows themselves would take long just when many wait.
WAITING_ESTIMATE = SQL("""
    SELECT coalesce(max(n_live_tup), 0) FROM pg_stat_user_tables
    WHERE schemaname = 'likewise' AND relname = 'waiting'
""")


async def waiting_estimate(pool: Pool) -> int:
    """About how many contents wait for a vector, over all tenants."""
    async with pool.nobody() as tx:
        row = await tx.row(WAITING_ESTIMATE)
    return max(0, int(row[0])) if row else 0
