"""Bookkeeping: what was used, from a process's memory to rows, once."""

import asyncio
from collections.abc import Mapping

from likewise.db import usage
from likewise.db.pool import Pool
from likewise.embedding.costs import Account, Ledger, Usage
from likewise.errors import DatabaseUnavailable, LikewiseError
from likewise.observe.logs import get_logger

log = get_logger(__name__)


class Bookkeeping:
    """Moves a ledger's usage to rows.

    Who wants to know all flushes, then reads the rows: nothing is looked for in two places, so nothing is ever missing
    from both or found in both. A connection that is lost at the commit leaves open whether the rows were added to:
    before anything else is, the database is asked, by the transaction's number, how that ended.
    """

    def __init__(self, pool: Pool, ledger: Ledger) -> None:
        self._pool = pool
        self._ledger = ledger
        self._turn = asyncio.Lock()
        self._in_doubt: tuple[str, Mapping[Account, Usage]] | None = None

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

    async def _add(self, taken: Mapping[Account, Usage]) -> None:
        number: str | None = None
        try:
            async with self._pool.nobody() as tx:
                number = await usage.add(tx, taken)
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
            ended = await usage.ending(tx, number)
        if ended == "in progress":
            # The server has not heard of the lost connection as yet.
            raise DatabaseUnavailable("What was used is still being stored; try again in a moment.")
        self._in_doubt = None
        if ended == "aborted":
            self._ledger.put_back(taken)


def _texts(used: Mapping[Account, Usage]) -> int:
    return sum(one.texts for one in used.values())
