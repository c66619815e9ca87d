"""A transaction as a tenant, and the parts of its statements."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import AsyncConnection, AsyncCursor
from psycopg.sql import SQL, Composed, Identifier

# What most searches want, so that their statements need no other.
USUAL_EF_SEARCH = 200
USUAL_MAX_SCANNED = 20_000

PLAN_SETTINGS = SQL("""
    set_config('enable_seqscan', %s, true), set_config('enable_indexscan', %s, true),
    set_config('enable_bitmapscan', %s, true), set_config('plan_cache_mode', %s, true),
    set_config('hnsw.ef_search', %s, true), set_config('hnsw.max_scan_tuples', %s, true),
    set_config('hnsw.iterative_scan', 'relaxed_order', true)
""")
SET_PLAN = SQL("SELECT {}").format(PLAN_SETTINGS)


@dataclass(frozen=True)
class Plan:
    """The ways that the planner may choose for a statement, and how far an index of vectors is searched.

    Attributes:
        sequential: whether a scan of the whole table is one of the ways.
        indexed: whether rows may be fetched in the order of an index.
        bitmaps: whether indexes may be combined before rows are fetched.
        once: whether the plan is made without a look at the parameters: an array of 10,000 ids takes 2 ms to plan with.
        ef_search: vectors that a search of HNSW keeps in view (see pgvector); None if it was set or does not matter.
        max_scanned: vectors that it visits at most when a filter turns many away; None likewise.
    """

    sequential: bool = False
    indexed: bool = True
    bitmaps: bool = True
    once: bool = True
    ef_search: int | None = None
    max_scanned: int | None = None

    def after(self, other: "Plan | None") -> "Plan":
        """Return the plan with what it leaves open as it was before, or as is usual."""
        before = other or Plan(ef_search=USUAL_EF_SEARCH, max_scanned=USUAL_MAX_SCANNED)
        return replace(
            self,
            ef_search=before.ef_search if self.ef_search is None else self.ef_search,
            max_scanned=before.max_scanned if self.max_scanned is None else self.max_scanned,
        )

    def parameters(self) -> list[str]:
        """Return the parameters of PLAN_SETTINGS."""
        switches = ["on" if one else "off" for one in (self.sequential, self.indexed, self.bitmaps)]
        mode = "force_generic_plan" if self.once else "force_custom_plan"
        return [*switches, mode, str(self.ef_search), str(self.max_scanned)]


# For statements whose best plan depends on what is asked for.
BY_VALUES = Plan(once=False)
EVERY_ROW = Plan(sequential=True, indexed=False, bitmaps=False)


Statement = SQL | Composed
Row = tuple[Any, ...]
Parameters = Sequence[Any] | Mapping[str, Any]
# Told how many of how many are done.
ProgressReport = Callable[[int, int], None]

BEGIN = SQL("BEGIN")
COMMIT = SQL("COMMIT")
ROLLBACK = SQL("ROLLBACK")
# Every statement of a search sees the same rows, so a hit cannot lose its text half-way.
BEGIN_SNAPSHOT = SQL("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
SET_TENANT = SQL("SELECT set_config('likewise.tenant', %s, true)")
# A reader that takes longer than this has nobody waiting for it any more.
READER_SETTINGS = SQL("set_config('likewise.tenant', %s, true), set_config('statement_timeout', '30s', true)")
SET_READER = SQL("SELECT {}").format(READER_SETTINGS)
SET_READER_AND_PLAN = SQL("SELECT {}, {}").format(READER_SETTINGS, PLAN_SETTINGS)


class Tx:
    """One transaction of one tenant. The first statement takes BEGIN and the tenant along in its round trip."""

    def __init__(self, connection: AsyncConnection[Row], tenant: int | None, begin: SQL) -> None:
        self.connection = connection
        self.tenant = tenant
        self._begin = begin
        self._begun = False
        self._last: list[tuple[Statement, Parameters]] = []
        self._afterwards: list[Callable[[], None]] = []
        self._plan: Plan | None = None

    async def execute(
        self,
        statement: Statement,
        parameters: Parameters | None = None,
        *,
        plan: Plan | None = None,
        commit: bool = False,
    ) -> AsyncCursor[Row]:
        """Run one statement; its cursor has the rows. Raises psycopg's errors, which the transaction's edge scrubs.

        Args:
            plan: how Postgres goes about this statement and those after it.
            commit: whether the transaction ends in the same round trip; what comes after it begins another.
        """
        if commit and self._last:
            raise RuntimeError("what was to run at the end would not")
        ahead = self._ahead(plan)
        if not ahead and not commit:
            return await self.connection.execute(statement, parameters)
        async with self.connection.pipeline():
            for one, values in ahead:
                await self.connection.execute(one, values)
            cursor = await self.connection.execute(statement, parameters)
            if commit:
                await self.connection.execute(COMMIT)
        if commit:
            self._begun, self._plan = False, None
        return cursor

    def _ahead(self, plan: Plan | None) -> list[tuple[Statement, Parameters | None]]:
        """Return the statements that must come before the next one, in the same round trip."""
        ahead: list[tuple[Statement, Parameters | None]] = []
        changed = None if plan is None else plan.after(self._plan)
        if changed == self._plan:
            changed = None
        self._plan = changed or self._plan
        if not self._begun:
            self._begun = True
            ahead.append((self._begin, None))
            if self.tenant is not None and self._begin is BEGIN_SNAPSHOT and changed is not None:
                return [*ahead, (SET_READER_AND_PLAN, [str(self.tenant), *changed.parameters()])]
            if self.tenant is not None:
                ahead.append((SET_READER if self._begin is BEGIN_SNAPSHOT else SET_TENANT, [str(self.tenant)]))
        if changed is not None:
            ahead.append((SET_PLAN, changed.parameters()))
        return ahead

    async def rows(
        self,
        statement: Statement,
        parameters: Parameters | None = None,
        *,
        plan: Plan | None = None,
        commit: bool = False,
    ) -> list[Row]:
        """Return all rows that the statement gives."""
        return await (await self.execute(statement, parameters, plan=plan, commit=commit)).fetchall()

    async def row(
        self, statement: Statement, parameters: Parameters | None = None, *, plan: Plan | None = None
    ) -> Row | None:
        """Return the first row, or None."""
        return await (await self.execute(statement, parameters, plan=plan)).fetchone()

    async def column(self, statement: Statement, parameters: Parameters | None = None) -> list[Any]:
        """Return the first value of each row."""
        return [row[0] for row in await self.rows(statement, parameters)]

    async def number(
        self, statement: Statement, parameters: Parameters | None = None, *, plan: Plan | None = None
    ) -> int:
        """Return the whole number that the statement gives, 0 for none."""
        row = await self.row(statement, parameters, plan=plan)
        return int(row[0]) if row else 0

    async def together(self, *statements: tuple[Statement, Parameters]) -> list[list[Row]]:
        """Run statements in their order within one round trip; return the rows of each."""
        async with self.connection.pipeline():
            cursors = [await self.execute(statement, parameters) for statement, parameters in statements]
        return [await cursor.fetchall() if cursor.description else [] for cursor in cursors]

    async def copy_in(self, statement: Statement, types: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Copy rows into a table without row-level security, in the binary format."""
        if not self._begun:
            await self.execute(SQL("SELECT 1"))
        async with self.connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types(types)
            for row in rows:
                await copy.write_row(row)

    async def copy_bytes(self, statement: Statement, body: bytes) -> None:
        """Copy rows that are encoded already, head and end included, into a table without row-level security."""
        if not self._begun:
            await self.execute(SQL("SELECT 1"))
        async with self.connection.cursor() as cursor, cursor.copy(statement) as copy:
            await copy.write(body)

    def at_the_end(self, statement: Statement, parameters: Parameters) -> None:
        """Have a statement run together with the commit, in one round trip; if it fails nothing is committed."""
        self._last.append((statement, parameters))

    def once_committed(self, act: Callable[[], None]) -> None:
        """Have something done when the transaction has been committed, and not otherwise."""
        self._afterwards.append(act)

    async def finish(self, *, commit: bool) -> None:
        """End the transaction, if one has begun."""
        await self._finish(commit=commit)
        for act in self._afterwards if commit else ():
            act()

    async def _finish(self, *, commit: bool) -> None:
        if not self._begun:
            return
        if self.connection.closed:
            if commit:
                raise psycopg.OperationalError("the connection is closed")
            return
        if not commit or not self._last:
            await self.connection.execute(COMMIT if commit else ROLLBACK)
            return
        async with self.connection.pipeline():
            for statement, parameters in self._last:
                await self.connection.execute(statement, parameters)
            await self.connection.execute(COMMIT)


def unreported(done: int, total: int) -> None:
    """Report progress to nobody."""


def table(prefix: str, number: int, view: int = 0) -> Identifier:
    """Return the name of a collection's or generation's own table, as a part of a statement."""
    return Identifier(table_name(prefix, number, view))


def table_name(prefix: str, number: int, view: int = 0) -> str:
    """Return the name of a collection's or generation's own table; a view beside the first has its number in it too."""
    return f"{prefix}_{int(number)}_{int(view)}" if view else f"{prefix}_{int(number)}"
