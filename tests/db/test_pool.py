"""Transactions as a tenant: set in one round trip, gone with the transaction, and silent about values."""

import asyncio
import traceback
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL

from likewise.db.failures import CollectionGone, Contended, DatabaseFailure, scrubbed
from likewise.db.pool import Pool, retried
from likewise.db.transaction import Tx
from likewise.errors import DatabaseUnavailable, LikewiseError
from likewise.testing import DatabaseUrls, ThrowawayPostgres
from tests.patience import PATIENCE, until

TENANT = SQL("SELECT nullif(current_setting('likewise.tenant', true), '')")
CANARY = "canary-7f3a"


@pytest.fixture(scope="module")
async def shared(postgres: ThrowawayPostgres) -> AsyncIterator[DatabaseUrls]:
    """A database for the tests that leave it as it was."""
    async with postgres.database() as urls:
        yield urls


@pytest.fixture
async def pool(shared: DatabaseUrls) -> AsyncIterator[Pool]:
    """A pool with one connection, so that each use comes after all others."""
    opened = await Pool(shared.serving, max_size=1).open()
    yield opened
    await opened.close()


async def tenant_in(tx: Tx) -> object:
    return (await tx.rows(TENANT))[0][0]


@asynccontextmanager
async def counted(url: str) -> AsyncIterator[tuple[str, list[int]]]:
    """The URL of a door to the same server, and how often the client has spoken after an answer."""
    parts = conninfo_to_dict(url)
    turns = [0]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_unix_connection(f"{parts['host']}/.s.PGSQL.{parts['port']}")
        answered = True

        async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter, asks: bool) -> None:
            nonlocal answered
            while data := await source.read(65536):
                turns[0] += asks and answered
                answered = not asks
                target.write(data)
                await target.drain()
            target.close()

        with suppress(ConnectionError):
            await asyncio.gather(carry(reader, there_writer, True), carry(there_reader, writer, False))

    with TemporaryDirectory(prefix="lw-") as folder:
        server = await asyncio.start_unix_server(serve, Path(folder) / ".s.PGSQL.5432")
        try:
            yield make_conninfo(url, host=folder, port=5432), turns
        finally:
            server.close()


async def test_begin_and_the_tenant_travel_with_the_first_statement(shared: DatabaseUrls) -> None:
    async with counted(shared.serving) as (url, turns):
        # Given
        opened = await Pool(url, max_size=1).open()
        for _ in range(10):
            async with opened.tenant(7) as tx:
                await tenant_in(tx)
        # When
        async with opened.tenant(7) as tx:
            before = turns[0]
            assert await tenant_in(tx) == "7"
            first = turns[0] - before
            assert await tenant_in(tx) == "7"
            second = turns[0] - before - first
            before = turns[0]
        # Then
        assert (first, second) == (1, 1)
        assert turns[0] - before == 1
        await opened.close()


async def test_a_tenant_ends_with_its_transaction(pool: Pool) -> None:
    async with pool.tenant(7) as tx:
        assert await tenant_in(tx) == "7"
    async with pool.nobody() as tx:
        assert await tenant_in(tx) is None
    async with pool.tenant(8, snapshot=True) as tx:
        assert await tenant_in(tx) == "8"
    async with pool.nobody() as tx:
        assert await tenant_in(tx) is None


async def _fails_in_sql(tx: Tx) -> None:
    await tx.execute(SQL("SELECT 1/0"))


async def _fails_at_once(tx: Tx) -> None:
    raise ZeroDivisionError


async def _fails_after_a_statement(tx: Tx) -> None:
    await tenant_in(tx)
    raise ZeroDivisionError


async def _is_cancelled(tx: Tx) -> None:
    async with asyncio.timeout(0.05):
        await tx.execute(SQL("SELECT pg_sleep(5)"))


async def _is_cancelled_later(tx: Tx) -> None:
    await tenant_in(tx)
    async with asyncio.timeout(0.05):
        await tx.execute(SQL("SELECT pg_sleep(5)"))


async def _loses_its_connection(tx: Tx) -> None:
    await tx.execute(SQL("SELECT pg_terminate_backend(pg_backend_pid())"))


@pytest.mark.parametrize(
    "work",
    [
        _fails_in_sql,
        _fails_at_once,
        _fails_after_a_statement,
        _is_cancelled,
        _is_cancelled_later,
        _loses_its_connection,
    ],
)
async def test_a_tenant_never_reaches_the_next_user_of_the_connection(
    pool: Pool, work: Callable[[Tx], Awaitable[None]]
) -> None:
    for _ in range(7):  # more often than psycopg takes to prepare a statement
        with pytest.raises((LikewiseError, ZeroDivisionError, TimeoutError)):
            async with pool.tenant(7) as tx:
                await work(tx)
        async with pool.nobody() as tx:
            assert await tenant_in(tx) is None
        async with pool.tenant(8) as tx:
            assert await tenant_in(tx) == "8"


async def test_what_failed_is_not_kept(pool: Pool) -> None:
    for work in (_fails_in_sql, _fails_after_a_statement, _is_cancelled_later):
        with suppress(LikewiseError, ZeroDivisionError, TimeoutError):
            async with pool.nobody() as tx:
                await tx.execute(SQL("SELECT tenant_named('lost')"))
                await work(tx)
    async with pool.nobody() as tx:
        assert await tx.rows(SQL("SELECT id FROM tenants")) == []


ADD_CONTENT = SQL("""
    INSERT INTO contents (tenant, collection, text_hash, text, chars)
    VALUES (7, 1, decode(md5(%s), 'hex'), %s, length(%s))
""")
OR_LEAVE_IT = SQL(" ON CONFLICT DO NOTHING")
LEAKS = {
    "a unique violation": (ADD_CONTENT, [CANARY] * 3),
    "a bad cast": (SQL("SELECT %s::text::int"), [CANARY]),
    "a bad uuid": (SQL("SELECT %s::text::uuid"), [CANARY]),
    "a bad time": (SQL("SELECT %s::text::timestamptz"), [CANARY]),
    "bad json": (SQL("SELECT %s::text::jsonb"), ["{" + CANARY]),
    "a missing value": (
        SQL("INSERT INTO contents (tenant, collection, text, text_hash) VALUES (7, 2, %s, '')"),
        [CANARY],
    ),
    "a failed check": (
        SQL("INSERT INTO contents (tenant, collection, text, text_hash, chars, state) VALUES (7, 3, %s, '', 1, %s)"),
        [CANARY, CANARY],
    ),
    "a missing reference": (
        SQL("INSERT INTO records (tenant, collection, id, content, payload) VALUES (7, 1, %s, -1, '{}')"),
        [CANARY],
    ),
    "a row of another tenant": (
        SQL("INSERT INTO contents (tenant, collection, text, text_hash, chars) VALUES (8, 1, %s, '', 1)"),
        [CANARY],
    ),
    "a wrong name": (SQL('SELECT "canary-7f3a" FROM records WHERE id = %s'), [CANARY]),
    "a syntax error": (SQL("SELECT 'canary-7f3a' WHERE %s = 'x' canary"), [CANARY]),
    "a null byte": (SQL("SELECT %s::text"), [CANARY + "\x00"]),
    "half a character": (SQL("SELECT %s::text"), [CANARY + "\ud800"]),
    "a message of its own": (SQL("SELECT tenant_named(NULL) WHERE %s <> ''"), [CANARY]),
    "an unknown type": (SQL("SELECT %s"), [type(CANARY, (), {})()]),
    "too few parameters": (SQL("SELECT %s, %s"), [CANARY]),
}


@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("what", LEAKS)
async def test_an_error_carries_no_value(pool: Pool, what: str, first: bool) -> None:
    # Given
    statement, values = LEAKS[what]
    async with pool.tenant(7) as tx:
        await tx.execute(ADD_CONTENT + OR_LEAVE_IT, [CANARY] * 3)

    async def fail() -> None:
        async with pool.tenant(7) as tx:
            if not first:
                await tenant_in(tx)
            await tx.execute(statement, values)

    # When
    with pytest.raises(LikewiseError) as raised:
        await fail()
    # Then
    error = raised.value
    told = [str(error), repr(error), error.detail, *traceback.format_exception(error), repr(vars(error))]
    try:
        raise RuntimeError from error
    except RuntimeError as later:
        told += traceback.format_exception(later)
    assert CANARY not in "".join(told).replace(repr(values), "")
    # The pool goes on.
    async with pool.tenant(8) as tx:
        assert await tenant_in(tx) == "8"


async def test_a_failed_copy_carries_no_value(pool: Pool) -> None:
    async def fail() -> None:
        async with pool.tenant(7) as tx:
            await tx.execute(SQL("CREATE TEMP TABLE t (a text PRIMARY KEY)"))
            await tx.copy_in(SQL("COPY t FROM STDIN (FORMAT binary)"), ["text"], [[CANARY], [CANARY]])

    with pytest.raises(LikewiseError) as raised:
        await fail()
    assert CANARY not in "".join(traceback.format_exception(raised.value))
    async with pool.tenant(8) as tx:
        assert await tenant_in(tx) == "8"


async def test_table_and_constraint_are_named(pool: Pool) -> None:
    async def fail() -> None:
        async with pool.tenant(7) as tx:
            for _ in range(2):
                await tx.execute(ADD_CONTENT, ["again"] * 3)

    with pytest.raises(DatabaseFailure) as raised:
        await fail()
    error = raised.value
    assert (error.sqlstate, error.table, error.constraint) == (
        "23505",
        "contents",
        "contents_collection_view_text_hash_key",
    )


async def test_connections_that_the_server_ended_are_replaced(
    shared: DatabaseUrls, postgres: ThrowawayPostgres
) -> None:
    opened = await Pool(shared.serving, max_size=3).open()

    async def once() -> int:
        async with opened.nobody() as tx:
            return (await tx.rows(SQL("SELECT pg_backend_pid()")))[0][0]

    for _ in range(2):
        before = set(await asyncio.gather(*(once() for _ in range(12))))
        async with await AsyncConnection.connect(postgres.server.superuser_url(), autocommit=True) as connection:
            await connection.execute(
                # They end a moment after they were told to: so long each is waited for, in milliseconds.
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid = ANY (%s)",
                [list(before)],
            )
        after = set(await asyncio.gather(*(once() for _ in range(12))))
        assert not before & after
    await opened.close()


async def test_callers_that_are_cancelled_cost_no_connection(shared: DatabaseUrls) -> None:
    opened = await Pool(shared.serving, max_size=3).open()

    async def work(seconds: float) -> None:
        async with opened.tenant(7) as tx:
            await tx.execute(SQL("SELECT pg_sleep(%s)"), [seconds])
            await tenant_in(tx)

    for round_ in range(30):
        tasks = [asyncio.create_task(work(0.001 * (n % 4))) for n in range(12)]
        await asyncio.sleep(0.0007 * (round_ % 10))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(work(0.1) for _ in range(6)))
    # All three serve.
    held = [opened.tenant(8) for _ in range(3)]
    async with asyncio.timeout(PATIENCE):
        for one in held:
            assert await tenant_in(await one.__aenter__()) == "8"
    for one in held:
        await one.__aexit__(None, None, None)
    await opened.close()


@dataclass
class Watched:
    """What becomes of statements: whose are under way, how many were cancelled there, what was closed under one.

    `closed_in_use` are connections that one task closed while a statement of another ran on them: the driver then
    reads freed memory.
    """

    users: dict[AsyncConnection[Any], list[object]] = field(default_factory=lambda: defaultdict(list))
    cancelled: int = 0
    closed_in_use: list[AsyncConnection[Any]] = field(default_factory=list)

    def under_way(self, tasks: Collection[object]) -> bool:
        """Whether one of these tasks waits for a statement at this moment."""
        return any(task in tasks for users in self.users.values() for task in users)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """What becomes of the statements of all connections."""
    watched = Watched()
    wait, close = AsyncConnection.wait, AsyncConnection.close

    async def watched_wait(self: AsyncConnection[Any], *arguments: Any, **options: Any) -> Any:
        task = asyncio.current_task()
        watched.users[self].append(task)
        try:
            return await wait(self, *arguments, **options)
        except asyncio.CancelledError:
            watched.cancelled += 1
            raise
        finally:
            watched.users[self].remove(task)

    async def watched_close(self: AsyncConnection[Any]) -> None:
        if not self.closed and set(watched.users[self]) - {asyncio.current_task()}:
            watched.closed_in_use.append(self)
        await close(self)

    monkeypatch.setattr(AsyncConnection, "wait", watched_wait)
    monkeypatch.setattr(AsyncConnection, "close", watched_close)
    return watched


async def test_a_connection_is_not_closed_while_a_statement_is_on_it(shared: DatabaseUrls, watched: Watched) -> None:
    # Given
    rounds = 30
    opened = await Pool(shared.serving, max_size=3).open()

    async def work() -> None:
        async with opened.tenant(7) as tx:
            await tenant_in(tx)
            await tx.execute(SQL("SELECT pg_sleep(1)"))

    # When: callers are told to leave again and again, as by a deadline and then by the end of the process
    for round_ in range(rounds):
        tasks = [asyncio.create_task(work()) for _ in range(3)]
        await until(partial(watched.under_way, tasks))
        for _ in range(1 + round_ % 4):
            for task in tasks:
                task.cancel()
            await asyncio.sleep(0.0005 * (round_ % 7))
        await asyncio.wait(tasks)
    await opened.close()
    # Then
    assert watched.cancelled >= rounds
    assert watched.closed_in_use == []


async def test_who_waits_too_long_for_a_connection_hears_that_all_are_busy(
    shared: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = await Pool(shared.serving, max_size=1).open()
    async with opened.nobody() as tx:
        await tenant_in(tx)
        monkeypatch.setattr("likewise.db.pool.POOL_TIMEOUT_SECONDS", 0.2)
        with pytest.raises(DatabaseUnavailable) as raised:
            async with opened.nobody():
                pass
        assert (raised.value.code, raised.value.status, raised.value.retry_after) == ("database_busy", 503, 1)
    await opened.close()
    with pytest.raises(DatabaseUnavailable):
        async with opened.nobody():
            pass


async def test_a_database_that_is_away_is_said_so_without_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("likewise.db.pool.POOL_TIMEOUT_SECONDS", 0.2)
    url = f"postgresql://someone:{CANARY}@127.0.0.1:1/nothing"
    with pytest.raises(DatabaseUnavailable) as raised:
        await Pool(url, max_size=1).open()
    assert CANARY not in "".join(traceback.format_exception(raised.value))


async def test_reading_sees_one_moment(database: DatabaseUrls) -> None:
    opened = await Pool(database.serving, max_size=2).open()
    async with opened.tenant(7, snapshot=True) as reading:
        count = SQL("SELECT count(*) FROM contents")
        assert await reading.rows(count) == [(0,)]
        async with opened.tenant(7) as writing:
            await writing.execute(ADD_CONTENT, [CANARY] * 3)
        assert await reading.rows(count) == [(0,)]
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await reading.execute(ADD_CONTENT, [CANARY] * 3)
        await reading.execute(SQL("ROLLBACK"))
    await opened.close()


@pytest.mark.parametrize(
    ("error", "becomes", "retryable"),
    [
        (psycopg.errors.DeadlockDetected, Contended, True),
        (psycopg.errors.SerializationFailure, Contended, True),
        (psycopg.errors.ForeignKeyViolation, Contended, True),
        (psycopg.errors.AdminShutdown, DatabaseUnavailable, True),
        (psycopg.errors.CannotConnectNow, DatabaseUnavailable, True),
        (psycopg.errors.TooManyConnections, DatabaseUnavailable, True),
        (psycopg.errors.DiskFull, DatabaseUnavailable, True),
        (psycopg.errors.IoError, DatabaseUnavailable, True),
        (psycopg.errors.ConnectionFailure, DatabaseUnavailable, True),
        (psycopg.OperationalError, DatabaseUnavailable, True),
        (psycopg.errors.UndefinedTable, DatabaseFailure, False),
        (psycopg.errors.CheckViolation, DatabaseFailure, False),
        (psycopg.DataError, DatabaseFailure, False),
        (ValueError, LikewiseError, False),
    ],
)
def test_each_failure_says_whether_it_can_heal(
    error: type[Exception], becomes: type[LikewiseError], retryable: bool
) -> None:
    scrubbed_ = scrubbed(error(CANARY))
    assert isinstance(scrubbed_, becomes)
    assert scrubbed_.retryable is retryable
    assert (scrubbed_.status == 503) is retryable
    assert CANARY not in str(scrubbed_)


async def test_a_table_that_went_with_its_collection_is_not_found(pool: Pool) -> None:
    for name in ("vec_99", "terms_99"):
        with pytest.raises(CollectionGone) as raised:
            async with pool.tenant(7) as tx:
                await tx.execute(SQL("SELECT * FROM " + name))  # type: ignore[arg-type]
        assert (raised.value.status, raised.value.code) == (404, "collection_not_found")


async def test_only_what_others_were_in_the_way_of_is_tried_again() -> None:
    tries = 0

    async def third_time() -> int:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise Contended("40P01")
        return tries

    assert await retried(third_time) == 3

    async def wrong() -> None:
        nonlocal tries
        tries += 1
        raise DatabaseFailure("22P02")

    with pytest.raises(DatabaseFailure):
        await retried(wrong)
    assert tries == 4


async def test_two_transactions_in_each_others_way_both_end_well(shared: DatabaseUrls) -> None:
    """A real deadlock: one of them is thrown out by Postgres, and tried again."""
    opened = await Pool(shared.serving, max_size=2).open()
    locked = SQL("SELECT pg_advisory_xact_lock(1, %s)")
    met = 0

    async def lock(first: int, second: int) -> None:
        nonlocal met
        async with opened.nobody() as tx:
            await tx.execute(locked, [first])
            met += 1
            await until(lambda: met >= 2)
            await tx.execute(locked, [second])

    await asyncio.gather(retried(lambda: lock(1, 2)), retried(lambda: lock(2, 1)))
    assert met == 3
    await opened.close()
