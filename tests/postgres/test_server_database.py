"""The database and the roles that Likewise finds in its embedded Postgres, and what Postgres writes to its log."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import suppress

import psycopg
import pytest

from likewise.postgres.server import LOCK_KEY, EmbeddedServer, create_database
from tests.patience import until
from tests.postgres.server_process import scratch_folder

CANARY = "canary-7f3a"
# The process that writes checkpoints is a new one after each recovery.
CHECKPOINTER = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'"


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[EmbeddedServer]:
    with scratch_folder() as folder:
        started = await EmbeddedServer.start(folder, durable=False)
        yield started
        await started.close()


async def one(url: str, statement: str) -> object:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        row = await (await connection.execute(statement)).fetchone()
        return row[0] if row else None


async def until_one_waits(server: EmbeddedServer, event: str) -> None:
    """Until one session is in a statement that waits for an event, by the name that Postgres has for it."""

    async def waits() -> bool:
        count = f"SELECT count(*) FROM pg_stat_activity WHERE wait_event = '{event}'"
        return await one(server.superuser_url(), count) == 1

    await until(waits)


async def test_the_roles_may_do_no_more_than_they_must(server: EmbeddedServer) -> None:
    powers = """
        SELECT count(*) FROM pg_roles WHERE rolname IN ('likewise_owner', 'likewise_server') AND rolcanlogin
        AND NOT (rolsuper OR rolbypassrls OR rolcreatedb OR rolcreaterole OR rolreplication)
    """
    assert await one(server.superuser_url(), powers) == 2


async def test_the_owner_has_a_schema_with_vectors(server: EmbeddedServer) -> None:
    async with await psycopg.AsyncConnection.connect(server.url()) as connection:
        await connection.execute("CREATE TABLE near (v vector(2))")
    assert await one(server.url(), "SELECT '[1,0]'::vector <=> '[0,1]'::vector") == 1
    assert await one(server.url(), "SELECT schemaname FROM pg_tables WHERE tablename = 'near'") == "likewise"


@pytest.mark.parametrize("statement", ["CREATE TABLE t (i int)", "CREATE TABLE public.t (i int)", "CREATE SCHEMA s"])
async def test_the_serving_role_may_make_nothing(server: EmbeddedServer, statement: str) -> None:
    with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.InvalidSchemaName)):
        await one(server.url("likewise_server"), statement)
    assert await one(server.url("likewise_server"), "SHOW search_path") == "likewise, public"


async def test_no_other_role_may_connect(server: EmbeddedServer) -> None:
    assert not await one(server.superuser_url(), "SELECT has_database_privilege('pg_monitor', 'likewise', 'CONNECT')")


async def test_a_database_is_made_once_however_many_ask(server: EmbeddedServer) -> None:
    await asyncio.gather(*(create_database(server.superuser_url(), 'odd "name"') for _ in range(6)))
    url = server.url(database='odd "name"')
    assert await one(url, "SELECT current_database()") == 'odd "name"'
    assert await one(url, "SELECT extversion FROM pg_extension WHERE extname = 'vector'")


async def test_who_makes_a_database_while_a_session_crashes_makes_it_all_the_same(server: EmbeddedServer) -> None:
    # Given one who is in the middle of it, behind another session
    other = await psycopg.AsyncConnection.connect(server.superuser_url(), autocommit=True)
    await other.execute("SELECT pg_advisory_lock(%s)", (LOCK_KEY,))
    making = asyncio.create_task(create_database(server.superuser_url(), "crashed"))
    await until_one_waits(server, "advisory")
    # When the process of that session is killed, and Postgres ends all sessions
    os.kill(other.info.backend_pid, signal.SIGKILL)
    # Then
    await making
    await other.close()
    assert await one(server.url(database="crashed"), "SELECT 1 FROM pg_extension WHERE extname = 'vector'") == 1


async def test_the_server_is_reached_by_its_socket_only(server: EmbeddedServer) -> None:
    assert await one(server.superuser_url(), "SHOW listen_addresses") == ""
    assert await one(server.superuser_url(), "SHOW data_checksums") == "on"
    assert await one(server.superuser_url(), "SHOW wal_recycle") == "off"
    assert server.data_directory.stat().st_mode & 0o777 == 0o700


async def test_closing_twice_and_starting_beside_oneself(server: EmbeddedServer) -> None:
    again = await EmbeddedServer.start(server.data_directory.parent.parent, durable=False)
    assert (again.url(), again.version, again.binaries) == (server.url(), server.version, server.binaries)
    await again.close()
    await again.close()
    assert await one(server.url(), "SELECT 1") == 1


@pytest.mark.parametrize(
    "statement",
    [
        f"SELECT '{CANARY}'::int",
        f"SELECT FROM WHERE '{CANARY}'",
        f"CREATE TEMP TABLE t (s text UNIQUE); INSERT INTO t VALUES ('{CANARY}'), ('{CANARY}')",
        f"DO $$ BEGIN RAISE LOG '{CANARY}'; RAISE WARNING '{CANARY}'; RAISE EXCEPTION '{CANARY}'; END $$",
        f"SET debug_print_plan = on; SET debug_print_parse = on; SELECT '{CANARY}'",
        f"SET log_parameter_max_length_on_error = -1; SELECT '{CANARY}'::date",
        f"SET statement_timeout = 50; SELECT pg_sleep(5), '{CANARY}'",
        f"SELECT pg_terminate_backend(pg_backend_pid()), '{CANARY}'",
    ],
)
async def test_no_statement_and_no_row_reaches_the_log(server: EmbeddedServer, statement: str) -> None:
    with suppress(psycopg.Error):
        await one(server.url(), statement)
    assert_log_is_clean(server)


async def test_bound_parameters_do_not_reach_the_log(server: EmbeddedServer) -> None:
    async with await psycopg.AsyncConnection.connect(server.url()) as connection:
        with pytest.raises(psycopg.errors.InvalidTextRepresentation):
            await connection.execute("SELECT %s::text::int", (CANARY,))
    assert_log_is_clean(server)


async def test_the_statement_of_a_crashed_session_does_not_reach_the_log(server: EmbeddedServer) -> None:
    # Given a session in the middle of a statement
    before = await one(server.superuser_url(), CHECKPOINTER)
    connection = await psycopg.AsyncConnection.connect(server.url(), autocommit=True)
    pid = connection.info.backend_pid
    running = asyncio.create_task(connection.execute(f"SELECT pg_sleep(30), '{CANARY}'"))
    await until_one_waits(server, "PgSleep")
    # When its process is killed, Postgres ends all sessions and recovers
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(psycopg.OperationalError):
        await running

    async def has_recovered() -> bool:
        with suppress(psycopg.OperationalError):
            return await one(server.superuser_url(), CHECKPOINTER) != before
        return False

    # Then an attach meanwhile is let in, and the log is clean
    again = await EmbeddedServer.start(server.data_directory.parent.parent, durable=False)
    await until(has_recovered)
    await again.close()
    assert_log_is_clean(server)


def assert_log_is_clean(server: EmbeddedServer) -> None:
    home = server.data_directory.parent
    logs = [home / "log", *home.rglob("*.log"), *home.rglob("core*")]
    assert not [path for path in logs if path.is_file() and CANARY.encode() in path.read_bytes()]
