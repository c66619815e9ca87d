"""The schema: applied once whoever asks, refused when it is newer or not the one that was applied."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from psycopg import AsyncConnection
from psycopg.sql import SQL, Identifier

import likewise
from likewise.db import migrate, roles
from likewise.db.failures import DatabaseFailure
from likewise.db.migrate import Migration
from likewise.embedding.embedder import Embedder
from likewise.errors import DatabaseUnavailable, SchemaError
from likewise.postgres.server import create_database
from likewise.settings import Settings
from likewise.testing import DatabaseUrls, FakeProvider, ThrowawayPostgres
from tests.flows.invariants import broken

KNOWN = [step.number for step in migrate.migrations()]
SHAPE = """
    SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
    WHERE c.relnamespace = 'likewise'::regnamespace AND c.relkind IN ('r', 'i', 'v') ORDER BY 1, 2
"""


async def sql(url: str, statement: Any, values: Any = None) -> list[tuple[Any, ...]]:
    async with await AsyncConnection.connect(url, autocommit=True) as connection:
        cursor = await connection.execute(statement, values)
        return await cursor.fetchall() if cursor.description else []


@pytest.fixture
async def empty(postgres: ThrowawayPostgres) -> AsyncIterator[DatabaseUrls]:
    """A database with pgvector and nothing of ours."""
    await create_database(postgres.server.superuser_url(), "test_empty")
    yield DatabaseUrls(
        postgres.server.url("likewise_owner", "test_empty"), postgres.server.url(roles.SERVER_ROLE, "test_empty")
    )
    await sql(postgres.server.superuser_url(), "DROP DATABASE test_empty WITH (FORCE)")


def test_steps_are_numbered_without_gaps_and_named_for_what_they_do() -> None:
    assert list(range(1, len(KNOWN) + 1)) == KNOWN
    assert all(len(step.name.split("_")) >= 3 for step in migrate.migrations())


async def test_an_empty_database_is_refused_until_it_is_upgraded(empty: DatabaseUrls) -> None:
    with pytest.raises(SchemaError, match="db upgrade"):
        await migrate.check(empty.serving)
    applied = await migrate.upgrade(empty.owner, server_role=roles.SERVER_ROLE)
    assert applied == [step.name for step in migrate.migrations()]
    await migrate.check(empty.serving)


async def test_a_role_that_the_schema_was_not_made_for_is_refused(
    empty: DatabaseUrls, postgres: ThrowawayPostgres
) -> None:
    superuser = postgres.server.superuser_url()
    await sql(superuser, "CREATE ROLE somebody_else")
    await migrate.upgrade(empty.owner, server_role="somebody_else")
    with pytest.raises(SchemaError, match="LIKEWISE_DATABASE_SERVING_URL"):
        await migrate.check(empty.serving)
    await sql(postgres.server.url("postgres", "test_empty"), "DROP OWNED BY somebody_else")
    await sql(superuser, "DROP ROLE somebody_else")


async def test_upgrading_again_does_nothing(empty: DatabaseUrls) -> None:
    await migrate.upgrade(empty.owner, server_role=roles.SERVER_ROLE)
    shape = await sql(empty.owner, SHAPE)
    assert await migrate.upgrade(empty.owner, server_role=roles.SERVER_ROLE) == []
    assert await sql(empty.owner, SHAPE) == shape


async def test_several_that_upgrade_at_once_apply_each_step_once(empty: DatabaseUrls) -> None:
    done = await asyncio.gather(*(migrate.upgrade(empty.owner, server_role=roles.SERVER_ROLE) for _ in range(5)))
    assert sorted(map(len, done)) == [0, 0, 0, 0, len(KNOWN)]
    await migrate.check(empty.serving)


async def test_a_newer_schema_is_refused(settings: Settings, database: DatabaseUrls) -> None:
    newer = KNOWN[-1] + 1
    await sql(
        database.owner,
        "INSERT INTO likewise.schema_migrations (number, name, checksum) VALUES (%s, 'of_the_future', 'x')",
        [newer],
    )
    shape = await sql(database.owner, SHAPE)
    with pytest.raises(SchemaError, match=f"schema {newer} .* newer"):
        await migrate.check(database.serving)
    with pytest.raises(SchemaError):
        await migrate.upgrade(database.owner, server_role=roles.SERVER_ROLE)
    with pytest.raises(SchemaError):
        async with likewise.open(settings):
            pass
    assert await sql(database.owner, SHAPE) == shape


async def test_a_step_that_was_changed_afterwards_is_refused(settings: Settings, database: DatabaseUrls) -> None:
    await sql(database.owner, "UPDATE likewise.schema_migrations SET checksum = 'other' WHERE number = 1")
    with pytest.raises(SchemaError, match="step 1 "):
        await migrate.check(database.serving)
    with pytest.raises(SchemaError, match="step 1 "):
        await migrate.upgrade(database.owner, server_role=roles.SERVER_ROLE)
    with pytest.raises(SchemaError):
        async with likewise.open(settings):
            pass


async def test_the_checksum_is_of_the_text_alone() -> None:
    step = Migration(1, "first_step_of", "SELECT 1")
    assert step.checksum == replace(step, number=2).checksum
    assert step.checksum != replace(step, sql="SELECT 2").checksum


async def test_a_step_that_fails_leaves_nothing_and_can_be_mended(
    database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    known = migrate.migrations()
    first, second = known[-1].number + 1, known[-1].number + 2
    good = Migration(first, "add_a_table", "CREATE TABLE added (a int); GRANT SELECT ON added TO {server};")
    bad = Migration(second, "fail_after_a_while", "CREATE TABLE half (a int); SELECT 'canary-7f3a'::int;")
    mended = replace(bad, sql="CREATE TABLE half (a int);")
    tables = "SELECT to_regclass('likewise.added') IS NOT NULL, to_regclass('likewise.half') IS NOT NULL"
    # When
    monkeypatch.setattr(migrate, "migrations", lambda: [*known, good, bad])
    with pytest.raises(DatabaseFailure) as failed:
        await migrate.upgrade(database.owner, server_role=roles.SERVER_ROLE)
    # Then
    assert "canary" not in str(failed.value)
    assert await sql(database.owner, tables) == [(True, False)]
    with pytest.raises(SchemaError):
        await migrate.check(database.serving)
    monkeypatch.setattr(migrate, "migrations", lambda: [*known, good, mended])
    assert await migrate.upgrade(database.owner, server_role=roles.SERVER_ROLE) == ["fail_after_a_while"]
    assert await sql(database.owner, tables) == [(True, True)]
    await migrate.check(database.serving)


async def test_odd_names_of_roles_are_quoted(empty: DatabaseUrls, postgres: ThrowawayPostgres) -> None:
    role = 'odd "role"; DROP TABLE tenants'
    superuser = postgres.server.superuser_url()
    await sql(superuser, SQL("CREATE ROLE {}").format(Identifier(role)))
    await migrate.upgrade(empty.owner, server_role=role)
    granted = await sql(empty.owner, "SELECT has_table_privilege(%s, 'likewise.records', 'INSERT')", [role])
    assert granted == [(True,)]
    await sql(postgres.server.url("postgres", "test_empty"), SQL("DROP OWNED BY {}").format(Identifier(role)))
    await sql(superuser, SQL("DROP ROLE {}").format(Identifier(role)))


async def test_a_database_that_is_away_is_said_so() -> None:
    for work in (migrate.check, lambda url: migrate.upgrade(url, server_role=roles.SERVER_ROLE)):
        with pytest.raises(DatabaseUnavailable):
            await work("postgresql://canary@127.0.0.1:1/nothing")


@pytest.mark.parametrize(("least", "value"), [("MIN_POSTGRES", 99), ("MIN_PGVECTOR", (0, 99))])
async def test_a_postgres_or_pgvector_that_is_too_old_is_refused(
    database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch, least: str, value: Any
) -> None:
    monkeypatch.setattr(migrate, least, value)
    with pytest.raises(SchemaError, match="99 or newer"):
        await migrate.check(database.serving)
    with pytest.raises(SchemaError, match="99 or newer"):
        await migrate.upgrade(database.owner, server_role=roles.SERVER_ROLE)


# What the program before made of two records with one text, one that waits sealed and one that failed.
BEFORE_VIEWS = """
    SET search_path = likewise, public; SELECT set_config('likewise.tenant', tenant_named('default')::text, false);
    SELECT make_collection('notes', 'collection', 'english-1', '{"keep_terms": true, "keep_text": true}',
                           'minilm-l6-v2', 384, 100);
    INSERT INTO contents (tenant, collection, text_hash, text, chars)
        SELECT 1, 1, sha256(convert_to(t, 'UTF8')), t, length(t) FROM unnest(ARRAY['shared', 'alone']) AS t;
    INSERT INTO records (tenant, collection, id, content, payload)
        SELECT 1, 1, i.id, c.pk, '{"n": 1}'
        FROM (VALUES ('a', 'shared'), ('b', 'shared'), ('c', 'alone')) AS i (id, text)
        JOIN contents c ON c.text = i.text;
    INSERT INTO waiting (tenant, generation, content, lane) SELECT 1, 1, pk, 1 FROM contents;
    INSERT INTO terms_1 (content, terms, weights) SELECT pk, '{}', '{}/1000000000' FROM contents;
"""
# Ids of contents go on where they were, under the first of the next cell.
IDS = """
    SELECT seqmax, (SELECT number FROM likewise.cell) FROM pg_sequence
    WHERE seqrelid = 'likewise.contents_pk_seq'::regclass
"""


async def test_a_database_with_data_gets_views_and_serves_on(
    empty: DatabaseUrls, postgres: ThrowawayPostgres, monkeypatch: pytest.MonkeyPatch, open_likewise: Any, settings: Any
) -> None:
    # Given
    known = migrate.migrations()
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "migrations", lambda: known[:8])
        await migrate.upgrade(empty.owner, server_role=roles.SERVER_ROLE)
    await sql(postgres.server.url("likewise_owner", "test_empty"), BEFORE_VIEWS)
    # When
    assert await migrate.upgrade(empty.owner, server_role=roles.SERVER_ROLE) == ["0009_views_of_a_collection"]
    # Then
    assert await sql(empty.owner, IDS) == [(2**44 - 1, 0)]
    ours = settings.model_copy(update={"database_url": empty.owner, "database_serving_url": empty.serving})
    embedder = Embedder(ours, providers={ours.model: lambda spec: FakeProvider()})
    async with likewise.open(ours, embedder=embedder) as lw:
        await lw.wait_until_embedded("notes")
        notes = lw.collection("notes")
        assert [hit.record.id for hit in (await notes.search("alone", mode="dense", limit=1)).hits] == ["c"]
        changed = await notes.add([{"id": "a", "text": "alone"}, {"id": "d", "text": "fresh"}], wait=True)
        assert (changed.created, changed.changed) == (1, 1)
        await notes.delete("b")
    assert await broken(empty.owner) == {}


async def test_the_ids_of_contents_begin_in_the_cell_of_the_database(
    empty: DatabaseUrls, postgres: ThrowawayPostgres
) -> None:
    await sql(postgres.server.superuser_url(), "ALTER DATABASE test_empty SET likewise.cell = '3'")
    await migrate.upgrade(empty.owner, server_role=roles.SERVER_ROLE)
    assert await sql(empty.owner, IDS) == [(4 * 2**44 - 1, 3)]
    assert await sql(empty.owner, "SELECT nextval('likewise.contents_pk_seq')") == [(3 * 2**44,)]
