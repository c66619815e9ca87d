"""Usage of embedding by tenant, model and hour, brought from a process's memory to rows, once."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import orjson
from psycopg.sql import SQL, Composed

from likewise.db.pool import Pool
from likewise.db.transaction import Tx
from likewise.embedding.costs import COUNTED, Ledger, Usage, UsageAccount
from likewise.errors import DatabaseUnavailable, LikewiseError
from likewise.observe.logs import get_logger

UsageGroup = Literal["model", "hour", "day", "tenant"]
TransactionEnd = Literal["committed", "aborted", "in progress"]

ADD = SQL("SELECT add_usage(%s::jsonb)::text")
# The asking transaction's number is above all that were given: one that is not below it was lost with a server that
# another took over from.
ENDING = SQL("""
    SELECT CASE WHEN %(number)s::xid8 < pg_current_xact_id() THEN pg_xact_status(%(number)s::xid8) ELSE 'aborted' END
""")

# In the order of `Usage`.
SUMS = SQL("""
    coalesce(sum(texts), 0)::bigint AS texts, coalesce(sum(cached), 0)::bigint AS cached,
    coalesce(sum(generated), 0)::bigint AS generated, coalesce(sum(tokens), 0)::bigint AS tokens,
    coalesce(sum(truncated), 0)::bigint AS truncated, coalesce(sum(estimated), 0)::bigint AS estimated,
    coalesce(sum(cost), 0) AS cost, coalesce(sum(cost_avoided), 0) AS cost_avoided
""")
SINCE_RESET = SQL("""
    SELECT (SELECT metrics_reset FROM tenants WHERE id = %(tenant)s), {sums} FROM usage
    WHERE tenant = %(tenant)s AND model <> ALL(%(others)s::text[])
""").format(sums=SUMS)
RESET = SQL("""
    UPDATE tenants
    SET metrics_reset = (
        SELECT to_jsonb(now_used) FROM (
            SELECT {sums} FROM usage WHERE tenant = %(tenant)s AND model <> ALL(%(others)s::text[])
        ) now_used
    )
    WHERE id = %(tenant)s
""").format(sums=SUMS)
# Of one tenant, or of all for who may see them.
GROUPED_BY = SQL("""
    SELECT {key}, {sums} FROM usage
    WHERE (%(tenant)s::int IS NULL OR tenant = %(tenant)s) AND hour >= %(since)s AND hour < %(until)s
    GROUP BY 1 ORDER BY 1
""")
GROUPED: Mapping[UsageGroup, Composed] = {
    "model": GROUPED_BY.format(key=SQL("model"), sums=SUMS),
    "hour": GROUPED_BY.format(key=SQL("hour"), sums=SUMS),
    "day": GROUPED_BY.format(key=SQL("date_trunc('day', hour, 'UTC')"), sums=SUMS),
    "tenant": GROUPED_BY.format(key=SQL("(SELECT name FROM tenants WHERE id = usage.tenant)"), sums=SUMS),
}

UsageKey = str | datetime
log = get_logger(__name__)


async def add(tx: Tx, used: Mapping[UsageAccount, Usage]) -> str:
    """Add to the rows of any tenants; return the transaction's number, for `ending`."""
    rows = [vars(account) | vars(usage) for account, usage in used.items()]
    row = await tx.row(ADD, [orjson.dumps(rows).decode()])
    return "" if row is None else str(row[0])


async def ending(tx: Tx, number: str) -> TransactionEnd:
    """Find how a transaction ended that was cut off at its commit; one that nobody remembers counts as committed."""
    row = await tx.row(ENDING, {"number": number})
    ended: TransactionEnd | None = None if row is None else row[0]
    return ended or "committed"


async def since_reset(pool: Pool, tenant: int, others: Sequence[str] = ()) -> Usage:
    """Sum what a tenant has used since it last counted anew, of all models but `others`."""
    async with pool.tenant(tenant, snapshot=True) as tx:
        row = await tx.row(SINCE_RESET, {"tenant": tenant, "others": list(others)})
    if row is None:
        return Usage()
    base: Mapping[str, Any] = row[0] or {}
    total = Usage(*row[1:])
    for name in COUNTED:
        # Dollars are added up in any order: a sum may differ from itself in the last digit.
        setattr(total, name, max(0, round(getattr(total, name) - base.get(name, 0), 12)))
    return total


async def reset(tx: Tx, tenant: int, others: Sequence[str] = ()) -> None:
    """Count anew from now, all models but `others`; the rows stay."""
    await tx.execute(RESET, {"tenant": tenant, "others": list(others)})


async def grouped(pool: Pool, tenant: int, since: datetime, until: datetime, by: UsageGroup) -> dict[UsageKey, Usage]:
    """Sum what a tenant used in the hours that begin from `since` until before `until`, in the order of the keys."""
    async with pool.tenant(tenant, snapshot=True) as tx:
        return await _grouped(tx, tenant, since, until, by)


async def grouped_of_all(owner: Pool, since: datetime, until: datetime, by: UsageGroup) -> dict[UsageKey, Usage]:
    """Sum the same hours of all tenants together, as the owner of the rows."""
    async with owner.nobody() as tx:
        return await _grouped(tx, None, since, until, by)


async def _grouped(
    tx: Tx, tenant: int | None, since: datetime, until: datetime, by: UsageGroup
) -> dict[UsageKey, Usage]:
    rows = await tx.rows(GROUPED[by], {"tenant": tenant, "since": since, "until": until})
    return {key: Usage(*sums) for key, *sums in rows}


class Bookkeeping:
    """The way of a ledger's usage to rows.

    Who wants to know all flushes, then reads the rows: nothing is looked for in two places, so nothing is ever missing
    from both or found in both. A connection that is lost at the commit leaves open whether the rows were added to:
    before anything else is, the database is asked, by the transaction's number, how that ended.
    """

    def __init__(self, pool: Pool, ledger: Ledger) -> None:
        self._pool = pool
        self._ledger = ledger
        self._turn = asyncio.Lock()
        self._in_doubt: tuple[str, Mapping[UsageAccount, Usage]] | None = None

    async def flush(self) -> None:
        """Keep all that was used until now; what cannot be kept stays for the next time, and the error says why."""
        async with self._pool.in_time(self._turn):
            await self._settle()
            taken = self._ledger.take()
            if taken:
                await self._add(taken)

    async def close(self) -> None:
        """Keep what is left, and say so if it is lost."""
        try:
            await self.flush()
        except LikewiseError as error:
            _, in_doubt = self._in_doubt or ("", {})
            log.error("usage_lost", code=error.code, texts=_texts(self._ledger.take()), in_doubt=_texts(in_doubt))

    async def _add(self, taken: Mapping[UsageAccount, Usage]) -> None:
        number: str | None = None
        try:
            async with self._pool.nobody() as tx:
                number = await add(tx, taken)
        except BaseException:
            if number is None:
                self._ledger.put_back(taken)
            else:
                self._in_doubt = number, taken
            raise

    async def _settle(self) -> None:
        """Find out whether what was in doubt is in the rows."""
        if self._in_doubt is None:
            return
        number, taken = self._in_doubt
        async with self._pool.nobody() as tx:
            ended = await ending(tx, number)
        if ended == "in progress":
            # The server has not heard of the lost connection as yet.
            raise DatabaseUnavailable("What was used is still being stored; try again in a moment.")
        self._in_doubt = None
        if ended == "aborted":
            self._ledger.put_back(taken)


def _texts(used: Mapping[UsageAccount, Usage]) -> int:
    return sum(one.texts for one in used.values())
