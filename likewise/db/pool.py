"""The connections of a role, lent for a transaction each; and the time in which the database lets nobody in."""

import asyncio
import random
import select
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from contextvars import Context
from typing import Self, TypeVar

import orjson
import psycopg
from pgvector.psycopg import register_vector_async
from psycopg import AsyncConnection
from psycopg.sql import SQL
from psycopg.types.json import set_json_loads
from psycopg_pool import AsyncConnectionPool
from psycopg_pool.errors import PoolClosed, PoolTimeout, TooManyRequests

from likewise.db.arrays import register_arrays
from likewise.db.failures import FULL, STORAGE, Contended, NoConnection, busy, scrubbed, why_away, why_no_connection
from likewise.db.transaction import BEGIN, BEGIN_SNAPSHOT, Row, Tx
from likewise.errors import DatabaseUnavailable, LikewiseError, SettingsError
from likewise.observe.logs import get_logger
from likewise.stopping import stop

T = TypeVar("T")
HAS_WRITTEN = SQL("SELECT pg_current_xact_id_if_assigned() IS NOT NULL")
WHO_AM_I = SQL("""
    SELECT rolsuper OR rolbypassrls, has_schema_privilege(current_user, 'likewise', 'CREATE')
    FROM pg_roles WHERE rolname = current_user
""")

# Ours first, then where pgvector lives. The plan for one array of ids is wrong for another, and planning costs less.
# Statements take milliseconds: a worker beside them costs more than it brings, and a core that others need.
SETTLE = SQL("""
    SELECT set_config('search_path', concat_ws(', ', 'likewise', (
               SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
               WHERE e.extname = 'vector')), false),
           set_config('plan_cache_mode', 'force_custom_plan', false),
           set_config('max_parallel_workers_per_gather', '0', false)
""")

# A connection is waited for this long before the caller hears that all are busy. A restart of Postgres takes less.
POOL_TIMEOUT_SECONDS = 10.0
# And this long while it is known that none can be had.
AWAY_SECONDS = 0.5
# A server that answers, however busy, lets somebody in within this.
LOOK_SECONDS = 3.0
LOOK_AGAIN_SECONDS = 1.0
# The driver's own bound is 130 s, and only three attempts are made at once.
CONNECT_SECONDS = 5
# The pool doubles its pause after each failed attempt for as long as this, then gives up, and is told to begin again.
RECONNECT_SECONDS = 3.0
TRIES = 8
# A server that does not answer does not keep who was cancelled.
END_SECONDS = 1.0
# A fault of the storage counts for this long after the last write that met it. Behind a balancer that sends nothing to
# a server that is not ready no write would ever come to show that it is over; the next one that fails sets it again.
FAULT_SECONDS = 30.0

log = get_logger(__name__)


class Outage:
    """The time in which no connection can be had, told from one in which all are lent out."""

    def __init__(self, url: str, forget_connections: Callable[[], Awaitable[None]]) -> None:
        """Watch the database at `url`.

        Args:
            forget_connections: has only new ones given out from then on; those that are silent may hang.
        """
        self._url = url
        self._forget_connections = forget_connections
        self._looking = asyncio.Lock()
        self._looked_at = -LOOK_AGAIN_SECONDS
        self._away = False
        self._watching: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def patience(self) -> float:
        """The seconds that a connection is worth waiting for."""
        return min(AWAY_SECONDS, POOL_TIMEOUT_SECONDS) if self._away else POOL_TIMEOUT_SECONDS

    def over(self) -> None:
        """Note that a connection was had."""
        self._away = False

    async def refusal(self) -> LikewiseError:
        """Return the error for a caller for whom no connection was free in time: all are busy, or nobody is let in."""
        async with self._looking:
            if not self._away and time.monotonic() - self._looked_at > LOOK_AGAIN_SECONDS:
                await self._look()
        return DatabaseUnavailable() if self._away else busy()

    async def close(self) -> None:
        """Look no more."""
        self._closed = True
        if self._watching is not None:
            await stop([self._watching])

    async def _look(self) -> None:
        # Twice: this process may itself have been too busy to hear the first answer in time.
        why = await _why_nobody_is_let_in(self._url) and await _why_nobody_is_let_in(self._url)
        self._looked_at = time.monotonic()
        if why is None or self._closed:
            return
        log.error("database_away", reason=why.what)
        await asyncio.shield(self._forget_connections())
        self._away = True
        if self._watching is None or self._watching.done():
            # In a context of its own: it is no part of the request that found out.
            self._watching = asyncio.create_task(self._watch(), name="wait for the database", context=Context())

    async def _watch(self) -> None:
        """Look until the database is back, whether or not anybody asks for a connection."""
        while self._away:
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
            gone = await _why_nobody_is_let_in(self._url) is not None
            # Meanwhile a connection may have been had.
            self._away = self._away and gone
        log.warning("database_back")


class Pool:
    """The connections of one role."""

    def __init__(self, url: str, *, max_size: int) -> None:
        self._pool: AsyncConnectionPool[AsyncConnection[Row]] = AsyncConnectionPool(
            url,
            min_size=1,
            max_size=max_size,
            open=False,
            timeout=POOL_TIMEOUT_SECONDS,
            configure=_settle_in_time,
            # A server that was killed and started again leaves dead connections here; they are found before use.
            check=_check,
            reconnect_timeout=RECONNECT_SECONDS,
            reconnect_failed=_try_on,
            kwargs={"autocommit": True, "application_name": "likewise", "connect_timeout": CONNECT_SECONDS},
            name="likewise",
        )
        self.url = url
        self.max_size = max_size
        # Readers that wait for a connection must not be in the way of writers, who need theirs for less.
        self._readers = asyncio.Semaphore(max_size - max_size // 4)
        self._returning: set[asyncio.Task[None]] = set()
        self._storage_fault: str | None = None
        self._fault_at = 0.0
        self._outage = Outage(url, self._pool.drain)

    @property
    def storage_fault(self) -> str | None:
        """The storage's fault that the last write met, until one succeeds or half a minute has passed."""
        return self._storage_fault if time.monotonic() - self._fault_at < FAULT_SECONDS else None

    @property
    def numbers(self) -> Mapping[str, int]:
        """The pool's own counts, by psycopg_pool's names."""
        return self._pool.get_stats()

    async def open(self) -> Self:
        """Connect; DatabaseUnavailable if nothing answers in time."""
        try:
            await self._pool.open(wait=True, timeout=POOL_TIMEOUT_SECONDS)
        except PoolTimeout:
            await self._pool.close()
            raise DatabaseUnavailable from None
        return self

    async def close(self) -> None:
        """Let go of all connections."""
        await self._outage.close()
        if self._returning:
            await asyncio.wait(self._returning)
        await self._pool.close()

    @asynccontextmanager
    async def tenant(self, tenant: int, *, snapshot: bool = False) -> AsyncIterator[Tx]:
        """Begin a transaction that sees this tenant's rows only; it commits at the end of the block."""
        if not snapshot:
            async with self._transaction(tenant, BEGIN) as tx:
                yield tx
            return
        async with self.in_time(self._readers), self._transaction(tenant, BEGIN_SNAPSHOT) as tx:
            yield tx

    @asynccontextmanager
    async def spare(self, tenant: int) -> AsyncIterator[Tx | None]:
        """Begin a second transaction to read in, beside one's own; None if nobody could have one without waiting.

        Readers that wait for a second one while they hold their first would all wait for each other.
        """
        if self._readers.locked() or self._pool.get_stats().get("pool_available", 0) == 0:
            yield None
            return
        # It is free, so this does not wait.
        async with self._readers, self._transaction(tenant, BEGIN_SNAPSHOT) as tx:
            yield tx

    @asynccontextmanager
    async def nobody(self) -> AsyncIterator[Tx]:
        """Begin a transaction without a tenant, for the functions that reach across them."""
        async with self._transaction(None, BEGIN) as tx:
            yield tx

    async def rows(self, statement: SQL, *parameters: object) -> list[Row]:
        """Return the rows of one statement that reaches across tenants, in a transaction of its own."""
        async with self.nobody() as tx:
            return await tx.rows(statement, parameters)

    async def row(self, statement: SQL, *parameters: object) -> Row | None:
        """Return the first row of one statement that reaches across tenants, or None."""
        return next(iter(await self.rows(statement, *parameters)), None)

    async def number(self, statement: SQL, *parameters: object) -> int:
        """Return the whole number that one statement gives which reaches across tenants, 0 for none."""
        row = await self.row(statement, *parameters)
        return int(row[0]) if row else 0

    @asynccontextmanager
    async def _transaction(self, tenant: int | None, begin: SQL) -> AsyncIterator[Tx]:
        try:
            async with self._connection() as connection:
                tx = Tx(connection, tenant, begin)
                try:
                    yield tx
                except Exception:
                    # This error is the one to tell; the pool throws a broken connection away.
                    with suppress(psycopg.Error):
                        await tx.finish(commit=False)
                    raise
                wrote = begin is BEGIN and self._storage_fault is not None and await tx.row(HAS_WRITTEN) == (True,)
                await tx.finish(commit=True)
                if wrote:
                    self._storage_fault = None
        except (psycopg.Error, PoolTimeout, PoolClosed, TooManyRequests, UnicodeError) as error:
            state = error.sqlstate if isinstance(error, psycopg.Error) else None
            if state is not None and state.startswith(STORAGE):
                self._storage_fault, self._fault_at = why_away(state), time.monotonic()
            raise scrubbed(error) from None

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection[Row]]:
        """Lend a connection of the pool to callers that may be cancelled at any moment."""
        try:
            connection = await self._pool.getconn(timeout=self._outage.patience)
        except PoolTimeout:
            raise await self._outage.refusal() from None
        self._outage.over()
        # A statement may be cut short: then what the server has prepared and what psycopg remembers of it may differ.
        whole = False
        try:
            yield connection
            whole = True
        except Exception:
            whole = True
            raise
        finally:
            await self._give_back(connection, whole=whole)

    async def _give_back(self, connection: AsyncConnection[Row], *, whole: bool) -> None:
        """Return a connection; a caller that is cancelled twice leaves, and the return goes on by itself.

        It is one task from the end of the last statement to the pool: psycopg reads freed memory when a connection is
        closed by one task while another still runs a statement on it.
        """
        returning = asyncio.create_task(self._returned(connection, whole=whole), name="give a connection back")
        self._returning.add(returning)
        returning.add_done_callback(self._returning.discard)
        await asyncio.shield(returning)

    async def _returned(self, connection: AsyncConnection[Row], *, whole: bool) -> None:
        if not whole:
            await _end(connection)
        await self._pool.putconn(connection)

    @asynccontextmanager
    async def in_time(self, turn: AbstractAsyncContextManager[None]) -> AsyncIterator[None]:
        """Take a turn among those who want a connection; DatabaseUnavailable if it does not come soon enough."""
        try:
            async with asyncio.timeout(self._outage.patience):
                await turn.__aenter__()
        except TimeoutError:
            raise await self._outage.refusal() from None
        try:
            yield
        finally:
            await turn.__aexit__(None, None, None)

    async def refuse_power(self) -> None:
        """Refuse to serve as a role that row-level security does not bind, or that may make things."""
        row = await self.row(WHO_AM_I)
        if row is None or row[0]:
            raise SettingsError(
                "The serving role is a superuser or bypasses row-level security: all would see every tenant's rows. "
                "Set LIKEWISE_DATABASE_SERVING_URL to a plain role; `likewise db upgrade` makes one."
            )
        if row[1]:
            raise SettingsError(
                "The serving role may create objects in the schema `likewise`. "
                "Set LIKEWISE_DATABASE_SERVING_URL to a plain role; `likewise db upgrade` makes one."
            )


async def retried(work: Callable[[], Awaitable[T]]) -> T:
    """Run a transaction again while others are in its way (deadlock, serialisation, a row that has just gone)."""
    for attempt in range(TRIES - 1):
        try:
            return await work()
        except Contended:
            # Jitter keeps writers that met once from meeting again.
            await asyncio.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311
    return await work()


async def settle(connection: AsyncConnection[Row]) -> None:
    """Make a new connection find our tables, and read and write vectors."""
    await connection.execute(SETTLE)
    # Postgres writes 1e308 out in full, which json would read as an integer that nobody can write again.
    set_json_loads(orjson.loads, connection)
    await register_vector_async(connection)
    register_arrays(connection)


async def _settle_in_time(connection: AsyncConnection[Row]) -> None:
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await settle(connection)
    except BaseException:
        # The pool forgets it, and does not close it.
        await connection.close()
        raise


async def _try_on(pool: AsyncConnectionPool[AsyncConnection[Row]]) -> None:
    """Begin anew: callers would else wait for an attempt that nobody makes."""
    if not pool.get_stats().get("pool_available", 0):
        await pool.check()


async def _check(connection: AsyncConnection[Row]) -> None:
    """Ask a connection whether it is alive if anything has come over it: an idle one is silent until its end."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
    if poll.poll(0):
        await AsyncConnectionPool.check_connection(connection)


async def _end(connection: AsyncConnection[Row]) -> None:
    """Close a connection whose transaction is over: its locks must not outlive it until the server hears of the end."""
    ending = asyncio.ensure_future(connection.rollback())
    await asyncio.wait({ending}, timeout=END_SECONDS)
    # Of a server that is silent psycopg would wait for ten seconds more; told twice, it closes the connection.
    await stop([ending])
    await connection.close()


async def _why_nobody_is_let_in(url: str) -> NoConnection | None:
    """Find why no session can be had, beside the pool; None if one can, or if others have them all."""
    try:
        async with asyncio.timeout(LOOK_SECONDS), await AsyncConnection.connect(url, autocommit=True):
            return None
    except (psycopg.Error, TimeoutError) as error:
        why = why_no_connection(error)
        return None if why is FULL else why
