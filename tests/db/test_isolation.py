"""What a tenant can see and do: tried as the serving role itself, with plain SQL, and through the services."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier

import likewise
from likewise.db import collections
from likewise.embedding.embedder import Embedder
from likewise.errors import Conflict, NotFound, SettingsError
from likewise.kind import NewRecord, Policy
from likewise.library import Likewise
from likewise.search.options import RecordQuestion, SearchOptions, SearchRequest, TextQuestion
from likewise.settings import Settings, load_settings
from likewise.testing import DatabaseUrls, FakeProvider, ThrowawayPostgres

# These hold ids and numbers only, and no security: under it Postgres could not use their indexes.
OPEN = ("vec_", "terms_")
# The text key's row is a digest of it; the other key is every serving process's.
PUBLIC = {"schema_migrations", "text_key", "notice_key", "cell"}
# The serving role asks functions about these and reads no row of them.
SEALED = {"api_keys"}
SECRETS = ("beta-secret", "beta only", "beta-status", "beta-parent", "beta-field")

TABLES = """
    SELECT relname, relrowsecurity, relforcerowsecurity FROM pg_class
    WHERE relnamespace = 'likewise'::regnamespace AND relkind IN ('r', 'p') ORDER BY relname
"""
REQUEST = SQL("""
    INSERT INTO idempotency (tenant, method, route, key, body_digest, state, status, answer, expires)
    VALUES (%s, 'POST', '/', %s, '', 'done', 200, '{}', now())
""")
JOB = SQL("INSERT INTO jobs (id, tenant, kind) VALUES (gen_random_uuid(), %s, %s)")
ITEM = SQL("INSERT INTO job_contents (tenant, job, item, content) SELECT tenant, id, kind, 0 FROM jobs")
Connection = AsyncConnection[tuple[Any, ...]]


# No kind of the general API has any.
A_FACT_OF_EACH_TEXT = """
    INSERT INTO content_fields (tenant, collection, field, value, content)
    SELECT tenant, collection, 'fact', text, pk FROM contents
"""


# Nor views beside the first; the owner makes one of each collection, and a content in it of each record.
VIEWS = """
    INSERT INTO collection_views (tenant, collection, view, name, terms)
        SELECT tenant, id, 1, name, false FROM collections WHERE name = 'notes';
    INSERT INTO contents (tenant, collection, view, text_hash, text, chars)
        SELECT tenant, collection, 1, text_hash, text, chars FROM contents;
    INSERT INTO record_contents (tenant, collection, view, record, content)
        SELECT r.tenant, r.collection, 1, r.pk, b.pk FROM records r JOIN contents c ON c.pk = r.content
        JOIN contents b ON b.collection = c.collection AND b.view = 1 AND b.text_hash = c.text_hash
"""


@dataclass
class Two:
    """Two tenants with equal names, ids and texts, and a secret of the second's."""

    lw: Likewise
    urls: DatabaseUrls
    alpha: int
    beta: int
    beta_collection: int = 0
    beta_generation: int = 0


@asynccontextmanager
async def two_tenants(settings: Settings, urls: DatabaseUrls) -> AsyncIterator[Two]:
    """Alpha and beta, each with a collection `notes`; beta's holds more, and entries that wait."""
    embedder = Embedder(settings, providers={settings.model: lambda spec: FakeProvider()})
    async with likewise.open(settings, worker=False, embedder=embedder) as lw:
        alpha, beta = [await collections.tenant_named(lw.runtime.pool, name) for name in ("alpha", "beta")]
        policy = Policy(indexed=("field",))
        for tenant, secrets in ((alpha, 0), (beta, 5)):
            await lw.collections.create(tenant, "notes", policy=policy)
            shared = [NewRecord(id=str(n), text=f"pump {n}", payload={"field": n}) for n in range(3)]
            await lw.collections.write(tenant, "notes", shared, wait=True)
            own = [
                NewRecord(
                    id=f"beta-secret {n}",
                    text=f"beta only {n}",
                    payload={"field": f"beta-field {n}"},
                    parent="beta-parent",
                    status="beta-status",
                )
                for n in range(secrets)
            ]
            await lw.collections.write(tenant, "notes", own)
            async with lw.runtime.pool.tenant(tenant) as tx:
                await tx.execute(REQUEST, [tenant, "beta-secret" if secrets else "key"])
                await tx.execute(SQL(A_FACT_OF_EACH_TEXT))
                await tx.execute(JOB, [tenant, "beta-secret" if secrets else "embed"])
                await tx.execute(ITEM)
        async with await AsyncConnection.connect(urls.owner, autocommit=True) as owner:
            await owner.execute("SET search_path = likewise")
            await owner.execute(VIEWS)
        await lw.runtime.bookkeeping.flush()
        await lw.collections.create(beta, "beta-secret")
        two = Two(lw, urls, alpha, beta)
        async with lw.runtime.pool.tenant(beta) as tx:
            collection = await collections.named(tx, "notes")
        two.beta_collection, two.beta_generation = collection.id, collection.active.id
        yield two


@pytest.fixture
async def two(settings: Settings, database: DatabaseUrls) -> AsyncIterator[Two]:
    """Two tenants in a database of the test's own."""
    async with two_tenants(settings, database) as two:
        yield two


@pytest.fixture(scope="module")
async def two_shared(postgres: ThrowawayPostgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Two]:
    """Two tenants for the tests that change nothing."""
    async with postgres.database() as urls:
        folder = tmp_path_factory.mktemp("data")
        settings = load_settings(data_dir=folder, database_url=urls.owner, database_serving_url=urls.serving)
        async with two_tenants(settings, urls) as two:
            yield two


async def serving(two: Two, tenant: int | None) -> Connection:
    """A plain connection as the serving role."""
    connection = await AsyncConnection.connect(two.urls.serving, autocommit=True)
    await connection.execute("SET search_path = likewise, public")
    if tenant is not None:
        await connection.execute("SELECT set_config('likewise.tenant', %s, false)", [str(tenant)])
    return connection


async def rows(connection: Connection, statement: Any, values: Any = None) -> list[tuple[Any, ...]]:
    return await (await connection.execute(statement, values)).fetchall()


async def secured(connection: Connection) -> list[str]:
    names = [row[0] for row in await rows(connection, TABLES)]
    return [name for name in names if not name.startswith(OPEN) and name not in PUBLIC | SEALED]


async def test_every_table_but_the_open_ones_is_secured_and_forces_it_on_its_owner(two_shared: Two) -> None:
    async with await serving(two_shared, None) as connection:
        found = await rows(connection, TABLES)
    unsecured = {name for name, on, forced in found if not (on and forced)}
    assert len(found) - len(unsecured) >= 7
    assert {name for name in unsecured if not name.startswith(OPEN)} == PUBLIC


async def test_views_run_with_the_rights_of_the_caller(two_shared: Two) -> None:
    async with await serving(two_shared, None) as connection:
        views = await rows(
            connection,
            """
            SELECT relname FROM pg_class WHERE relnamespace = 'likewise'::regnamespace AND relkind IN ('v', 'm')
            AND NOT coalesce('security_invoker=true' = ANY (reloptions), false)
            """,
        )
    assert views == []


@pytest.mark.parametrize("as_tenant", ["alpha", "nobody", "no-number", "none-at-all"])
async def test_no_row_of_another_tenant_is_seen_in_any_table(two_shared: Two, as_tenant: str) -> None:
    async with await serving(two_shared, None) as connection:
        setting = {"alpha": str(two_shared.alpha), "nobody": "", "no-number": "0"}.get(as_tenant)
        if setting is not None:
            await connection.execute("SELECT set_config('likewise.tenant', %s, false)", [setting])
        for name in await secured(connection):
            found = await rows(connection, SQL("SELECT to_jsonb(t), t.*::text FROM {} t").format(Identifier(name)))
            owner = "id" if name == "tenants" else "tenant"
            assert {row[0][owner] for row in found} <= ({two_shared.alpha} if as_tenant == "alpha" else set()), name
            assert not [row for row in found if any(secret in row[1] for secret in SECRETS)]
            if as_tenant == "alpha" and name != "waiting":
                assert found, f"{name} has no row of alpha: the test shows nothing"


async def test_a_tenant_that_is_no_number_is_an_error_and_shows_nothing(two_shared: Two) -> None:
    async with await serving(two_shared, None) as connection:
        await connection.execute("SELECT set_config('likewise.tenant', %s, false)", [f"{two_shared.alpha} OR true"])
        with pytest.raises(psycopg.errors.InvalidTextRepresentation):
            await rows(connection, "SELECT * FROM records")


async def test_other_tenants_rows_cannot_be_changed_moved_or_locked(two_shared: Two) -> None:
    beta = [two_shared.beta]
    async with await serving(two_shared, two_shared.alpha) as connection:
        for name in ("contents", "records", "record_fields", "waiting", "idempotency", "jobs", "job_contents"):
            for statement in ("DELETE FROM {} WHERE tenant = %s", "UPDATE {} SET tenant = tenant WHERE tenant = %s"):
                assert (await connection.execute(SQL(statement).format(Identifier(name)), beta)).rowcount == 0
            if await rows(connection, SQL("SELECT 1 FROM {}").format(Identifier(name))):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    await connection.execute(SQL("UPDATE {} SET tenant = %s").format(Identifier(name)), beta)
        statement = "SELECT 1 FROM contents WHERE tenant = %s FOR UPDATE"
        assert await rows(connection, statement, [two_shared.beta]) == []
        for statement in (
            "UPDATE collections SET terms_total = 0 WHERE id = %s",
            "UPDATE generations SET space = 'x' WHERE collection = %s",
        ):
            assert (await connection.execute(statement, [two_shared.beta_collection])).rowcount == 0
        assert (await connection.execute("UPDATE tenants SET metrics_reset = '{}' WHERE id = %s", beta)).rowcount == 0
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await connection.execute(
                "INSERT INTO records (tenant, collection, id, content, payload) VALUES (%s, %s, 'x', 1, '{}')",
                [two_shared.beta, two_shared.beta_collection],
            )


async def test_the_functions_with_the_owners_rights_do_not_reach_another_tenants_collection(two_shared: Two) -> None:
    async with await serving(two_shared, two_shared.alpha) as connection:
        with pytest.raises(psycopg.errors.NoDataFound):
            await connection.execute(
                "SELECT make_generation(%s, 0::smallint, 'minilm-l6-v2', 384, 'building', NULL)",
                [two_shared.beta_collection],
            )
        assert await rows(connection, "SELECT drop_collection(%s)", [two_shared.beta_collection]) == [(False,)]
    async with await serving(two_shared, None) as connection:
        with pytest.raises(psycopg.errors.NoDataFound):
            await connection.execute(
                "SELECT make_generation(%s, 0::smallint, 'minilm-l6-v2', 384, 'building', NULL)",
                [two_shared.beta_collection],
            )
        assert await rows(connection, "SELECT drop_collection(%s)", [two_shared.beta_collection]) == [(False,)]
        with pytest.raises(psycopg.errors.NotNullViolation):
            await connection.execute(
                "SELECT make_collection('x', 'collection', 'english-1', '{}', 'minilm-l6-v2', 384, 100, '[]')"
            )
    assert (await two_shared.lw.collections.stats(two_shared.beta, "notes"))["records"] == 8


async def test_functions_are_a_closed_list_with_a_fixed_search_path(two_shared: Two) -> None:
    async with await AsyncConnection.connect(two_shared.urls.owner, autocommit=True) as connection:
        found = await rows(
            connection,
            """
            SELECT p.proname, p.prosecdef, coalesce(p.proconfig, '{}'),
                   has_function_privilege('public', p.oid, 'EXECUTE')
            FROM pg_proc p WHERE p.pronamespace = 'likewise'::regnamespace
            AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
            """,
        )
    definers = {name: settings for name, definer, settings, _ in found if definer}
    assert set(definers) == {
        "tenant_named", "tenant_known", "make_generation", "make_collection", "drop_collection",
        "claim_entries", "sweep_waiting", "give_back_waiting", "waiting_models", "waiting_tokens",
        "live_api_key", "any_api_key", "api_keys_used", "forget_expired_requests", "add_usage",
        "claim_task", "expire_sealed", "forget_jobs", "spaces_of_model", "record_text_key",
    }  # fmt: skip
    assert set(map(tuple, definers.values())) == {("search_path=likewise, pg_temp",)}
    assert [name for name, _, _, by_all in found if by_all] == []


async def test_the_open_tables_hold_ids_and_numbers_only(two_shared: Two) -> None:
    async with await serving(two_shared, two_shared.alpha) as connection:
        columns = await rows(
            connection,
            r"""
            SELECT DISTINCT regexp_replace(c.relname, '\d+$', ''), a.attname, format_type(a.atttypid, NULL)
            FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
            WHERE c.relnamespace = 'likewise'::regnamespace AND c.relkind = 'r' AND c.relname ~ '^(vec|terms)_'
            """,
        )
    kinds = {kind.removeprefix("likewise.").removeprefix("public.") for _, _, kind in columns}
    assert kinds <= {"bigint", "integer", "integer[]", "timestamp with time zone", "halfvec", "sparsevec"}


async def test_statistics_show_nothing_of_secured_tables(two_shared: Two) -> None:
    async with await AsyncConnection.connect(two_shared.urls.owner, autocommit=True) as owner:
        await owner.execute("ANALYZE")
    async with await serving(two_shared, two_shared.alpha) as connection:
        shown = {
            row[0] for row in await rows(connection, "SELECT tablename FROM pg_stats WHERE schemaname = 'likewise'")
        }
        assert not shown & set(await secured(connection))
        for catalog in ("pg_statistic", "pg_authid", "pg_statistic_ext_data"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await rows(connection, SQL("SELECT * FROM {}").format(Identifier(catalog)))
        activity = await rows(connection, "SELECT query FROM pg_stat_activity WHERE usename <> current_user")
        assert {row[0] for row in activity} <= {"<insufficient privilege>", None}


FORBIDDEN = {
    "create a table": "CREATE TABLE likewise.mine (a int)",
    "create a table in public": "CREATE TABLE public.mine (a int)",
    "create a schema": "CREATE SCHEMA mine",
    "create a function": "CREATE FUNCTION likewise.mine() RETURNS int LANGUAGE sql RETURN 1",
    "create a role": "CREATE ROLE mine",
    "create a database": "CREATE DATABASE mine",
    "drop an extension": "DROP EXTENSION vector",
    "create an index": "CREATE INDEX mine ON likewise.records (id)",
    "index vectors": "CREATE INDEX mine ON likewise.vec_1 (tokens)",
    "alter a table": "ALTER TABLE likewise.records ADD COLUMN mine int",
    "alter vectors": "ALTER TABLE likewise.vec_1 ADD COLUMN mine int",
    "turn security off for a table": "ALTER TABLE likewise.records DISABLE ROW LEVEL SECURITY",
    "not force security": "ALTER TABLE likewise.records NO FORCE ROW LEVEL SECURITY",
    "drop a policy": "DROP POLICY tenant ON likewise.records",
    "add a policy": "CREATE POLICY mine ON likewise.records USING (true)",
    "add a rule": "CREATE RULE mine AS ON INSERT TO likewise.records DO ALSO NOTHING",
    "drop a table": "DROP TABLE likewise.records",
    "drop vectors": "DROP TABLE likewise.vec_1",
    "drop a function": "DROP FUNCTION likewise.this_tenant()",
    "truncate": "TRUNCATE likewise.records",
    "truncate vectors": "TRUNCATE likewise.vec_1",
    "change vectors": "UPDATE likewise.vec_1 SET tokens = 0",
    "change terms": "UPDATE likewise.terms_1 SET terms = '{}'",
    "make collections by hand": "INSERT INTO likewise.collections DEFAULT VALUES",
    "drop collections by hand": "DELETE FROM likewise.collections",
    "take over a collection": "UPDATE likewise.collections SET tenant = 1",
    "rename a tenant": "UPDATE likewise.tenants SET name = 'x'",
    "write migrations": "INSERT INTO likewise.schema_migrations (number, name, checksum) VALUES (9, '', '')",
    "use less": "UPDATE likewise.usage SET cost = 0",
    "have used nothing": "DELETE FROM likewise.usage",
    "use by hand": "INSERT INTO likewise.usage (tenant, model, hour) VALUES (1, '', now())",
    "read keys": "SELECT prefix FROM likewise.api_keys",
    "make keys": "INSERT INTO likewise.api_keys (prefix, digest, tenant, scopes) VALUES ('x', '', 1, '{read}')",
    "change the text key": "UPDATE likewise.text_key SET id = ''",
    "forget the text key": "DELETE FROM likewise.text_key",
    "change keys": "UPDATE likewise.api_keys SET scopes = '{admin}'",
    "delete keys": "DELETE FROM likewise.api_keys",
    "be the owner": "SET ROLE likewise_owner",
    "be the superuser": "SET ROLE postgres",
    "be the owner for the session": "SET SESSION AUTHORIZATION likewise_owner",
    "grant itself the owner": "GRANT likewise_owner TO likewise_server",
    "take a table": "ALTER TABLE likewise.records OWNER TO likewise_server",
    "make itself a superuser": "ALTER ROLE likewise_server SUPERUSER",
    "let itself bypass security": "ALTER ROLE likewise_server BYPASSRLS",
    "read files": "SELECT pg_read_file('postgresql.conf')",
    "write files": "COPY likewise.schema_migrations TO '/tmp/x'",
    "run programs": "COPY likewise.schema_migrations TO PROGRAM 'true'",
    "load code": "LOAD 'auto_explain'",
    "switch triggers off": "SET session_replication_role = replica",
    "read large objects of others": "SELECT lo_import('/etc/passwd')",
}  # fmt: skip


@pytest.mark.parametrize("what", FORBIDDEN)
async def test_the_serving_role_cannot(two_shared: Two, what: str) -> None:
    async with await serving(two_shared, two_shared.alpha) as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await connection.execute(FORBIDDEN[what])


async def test_copy_into_a_secured_table_is_refused(two_shared: Two) -> None:
    async with await serving(two_shared, two_shared.alpha) as connection:
        for name in ("contents", "records", "record_fields", "waiting"):
            with pytest.raises(psycopg.errors.FeatureNotSupported):
                await connection.execute(SQL("COPY {} FROM STDIN").format(Identifier(name)))


async def test_copy_out_shows_what_a_select_would(two_shared: Two) -> None:
    async with await serving(two_shared, two_shared.alpha) as connection:
        out = b""
        async with connection.cursor() as cursor, cursor.copy("COPY records TO STDOUT") as copy:
            async for data in copy:
                out += bytes(data)
    assert out
    assert b"beta" not in out


async def test_security_that_is_switched_off_shows_nothing_at_all(two_shared: Two) -> None:
    async with await serving(two_shared, two_shared.alpha) as connection:
        await connection.execute("SET row_security = off")
        for name in await secured(connection):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await rows(connection, SQL("SELECT * FROM {}").format(Identifier(name)))


LEAK = """
    CREATE FUNCTION pg_temp.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0001
    AS $$BEGIN RAISE NOTICE '%', $1; RETURN true; END$$
"""


async def test_a_view_or_function_of_its_own_brings_the_serving_role_nothing(two_shared: Two) -> None:
    """It may make temporary things: they run with its own rights, and the owner's functions do not find them."""
    async with await serving(two_shared, two_shared.alpha) as connection:
        await connection.execute("CREATE TEMP TABLE collections (id int, tenant int)")
        await connection.execute(
            "INSERT INTO pg_temp.collections VALUES (%s, %s)", [two_shared.beta_collection, two_shared.alpha]
        )
        assert await rows(connection, "SELECT likewise.drop_collection(%s)", [two_shared.beta_collection]) == [(False,)]
        await connection.execute(LEAK)
        notices: list[str] = []
        connection.add_notice_handler(lambda diagnostic: notices.append(diagnostic.message_primary or ""))
        await rows(connection, "SELECT id FROM records WHERE pg_temp.leak(id)")
        await rows(connection, "SELECT text FROM contents WHERE pg_temp.leak(text)")
    assert notices
    assert not [notice for notice in notices if any(secret in notice for secret in SECRETS)]


async def test_a_superuser_or_the_owner_is_refused_for_serving(settings: Settings, postgres: ThrowawayPostgres) -> None:
    assert settings.database_url is not None
    name = settings.database_url.partition("?")[0].rpartition("/")[2]
    powerful = make_conninfo(postgres.server.superuser_url(), dbname=name)
    for url in (powerful, settings.database_url):
        changed = settings.model_copy(update={"database_serving_url": url})
        with pytest.raises(SettingsError) as refused:
            async with likewise.open(changed):
                pass
        assert "LIKEWISE_DATABASE_SERVING_URL" in refused.value.detail


async def test_two_tenants_with_equal_names_ids_and_texts_see_only_their_own(two: Two) -> None:
    service = two.lw.collections
    alpha, beta = two.alpha, two.beta
    # Counts
    stats = [await service.stats(tenant, "notes") for tenant in (alpha, beta)]
    assert [(one["records"], one["contents"], one["vectors"], one["waiting"]) for one in stats] == [
        (3, 3, 3, 0),
        (8, 8, 3, 5),
    ]
    assert [view.name for view in await service.list(alpha, 100, None)] == ["notes"]
    # Searches: by words, by meaning, by both, with and without a filter, and by a record
    for mode in ("hybrid", "dense", "lexical"):
        for filters in (None, {"status": "beta-status"}, {"field": "beta-field 1"}, {"id": {"$exists": True}}):
            request = SearchRequest(
                TextQuestion("pump beta only 1"), SearchOptions(limit=100, mode=mode, filters=filters)
            )
            hits = (await service.search(alpha, "notes", request)).hits
            assert {hit.id for hit in hits} <= {"0", "1", "2"}
            assert all(hit.record.text is None or "beta" not in hit.record.text for hit in hits)
        like = SearchRequest(RecordQuestion("1"), SearchOptions(limit=100, mode=mode))
        assert {hit.id for hit in (await service.search(alpha, "notes", like)).hits} == {"0", "2"}
        with pytest.raises(NotFound):
            await service.search(
                alpha, "notes", SearchRequest(RecordQuestion("beta-secret 1"), SearchOptions(mode=mode))
            )
    # One record, changed and deleted on one side only
    with pytest.raises(NotFound):
        await service.record(alpha, "notes", "beta-secret 1")
    with pytest.raises(NotFound):
        await service.delete(alpha, "notes", "beta-secret 1")
    with pytest.raises(NotFound):
        await service.get(alpha, "beta-secret")
    await service.write(alpha, "notes", [NewRecord(id="1", text="pump one of alpha")], wait=True)
    await service.delete(alpha, "notes", "2")
    assert (await service.record(beta, "notes", "1")).text == "pump 1"
    assert (await service.record(beta, "notes", "2")).text == "pump 2"
    # A name that another has is free, one's own is not
    await service.create(alpha, "beta-secret")
    with pytest.raises(Conflict):
        await service.create(alpha, "notes")
    await service.drop(alpha, "notes")
    assert (await service.stats(beta, "notes"))["records"] == 8


async def test_a_tenant_is_never_answered_from_what_another_had_embedded(two_shared: Two) -> None:
    """Whether a text was embedded before is no secret that the cache may tell."""
    embedder = two_shared.lw.embedder
    first = await embedder.embed(two_shared.beta, ["beta only text"])
    assert not first.cached.any()
    assert not (await embedder.embed(two_shared.alpha, ["beta only text"])).cached.any()
    assert (await embedder.embed(two_shared.beta, ["beta only text"])).cached.all()
