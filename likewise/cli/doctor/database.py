"""Check the database: server, roles, schema, clock, index, queue."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import psycopg
from psycopg import AsyncConnection

from likewise.cli.doctor.finding import Finding
from likewise.db import checkup, migrate, roles, text_key
from likewise.db.failures import scrubbed, why_no_connection
from likewise.db.transaction import Row
from likewise.embedding.models import Catalogue
from likewise.errors import LikewiseError, WrongTextKey
from likewise.runtime import Database, named_database, open_database
from likewise.settings import Settings

# Any look at a database that answers takes milliseconds.
LOOK_SECONDS = 15.0
# A start or stop of the embedded server takes less, unless it recovers from a crash.
BUSY_SECONDS = 5.0
MAX_SKEW_SECONDS = 2.0
# Beyond the lease of a worker that died: by then another should have taken over.
WAITING_SECONDS = 240.0
# A process has these beside those that LIKEWISE_DATABASE_CONNECTIONS counts.
OTHER_CONNECTIONS = 4

RowConnection = AsyncConnection[Row]
Check = Callable[[RowConnection], Awaitable[Finding]]


async def database(settings: Settings, now: Callable[[], float] = time.time) -> AsyncIterator[Finding]:
    """Check the database, then what is in it; checks that build on a broken part are left out."""
    async with AsyncExitStack() as stack:
        try:
            where = await stack.enter_async_context(_opened(settings))
            owner = await _connected(stack, where.owner_url, "LIKEWISE_DATABASE_URL", "database")
            part = "roles" if owner else "database"
            serving = await _connected(stack, where.serving_url, _serving_name(settings), part)
        except _NoDatabase as error:
            yield error.finding
            return
        except LikewiseError as error:
            yield Finding("database", error.detail, _mend(settings))
            return
        assert serving is not None
        schema = await _schema(settings, serving, where)
        yield schema
        if serving.info.server_version < migrate.MIN_POSTGRES * 10_000:
            return
        asked = owner or serving
        yield await _checked("locale of the database", asked, _locale)
        yield await _checked("connections", asked, lambda one: _connections(settings, where, one))
        yield await _checked("clock of the database", asked, lambda one: _clock(one, now))
        yield await _checked("roles", asked, lambda one: _roles(where, one))
        if schema.mend is not None:
            return
        yield await _checked("text key", serving, lambda one: _text_key(settings, one))
        yield await _checked("index", asked, lambda one: _index(settings, one))
        yield await _checked("waiting", serving, lambda one: _waiting(settings, one))
        if owner is not None:
            yield await _checked("failed texts", owner, _failed)


class _NoDatabase(Exception):
    def __init__(self, finding: Finding) -> None:
        self.finding = finding


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[Database]:
    """Open the database; an embedded one is started for as long as it is checked, and upgraded by that."""
    if settings.database_url or settings.database_serving_url:
        yield await named_database(settings)
        return
    if await asyncio.to_thread(checkup.server_is_busy, settings.data_dir, BUSY_SECONDS):
        what = f"another process has been starting or stopping the embedded Postgres for {BUSY_SECONDS:.0f} s"
        raise _NoDatabase(
            Finding("database", what, "Wait until it is done, or stop that process; then run this again.")
        )
    if await checkup.server_is_silent(settings.data_dir, LOOK_SECONDS):
        what = f"the embedded Postgres runs, and has not answered for {LOOK_SECONDS:.0f} s"
        mend = (
            "See this machine's load and disk, or stop every Likewise process, end what is left of Postgres and start."
        )
        raise _NoDatabase(Finding("database", what, mend))
    async with open_database(settings) as opened:
        yield opened


async def _connected(stack: AsyncExitStack, url: str | None, name: str, part: str) -> RowConnection | None:
    """Connect to a URL, if there is one; _NoDatabase names the fault of the part."""
    if url is None:
        return None
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            return await stack.enter_async_context(checkup.connected(url))
    except (psycopg.Error, TimeoutError) as error:
        why = why_no_connection(error)
        raise _NoDatabase(Finding(part, f"{name}: {why.what}", why.fix.format(name=name))) from None


async def _checked(part: str, connection: RowConnection, check: Check) -> Finding:
    """Run a check; one that does not come to an end is a finding too."""
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            return await check(connection)
    except (TimeoutError, psycopg.errors.QueryCanceled):
        return Finding(part, "the database takes too long to say", "See its load, its disk and its locks.")
    except psycopg.Error as error:
        return Finding(part, scrubbed(error).detail, "Fix that, then run this again.")


async def _schema(settings: Settings, connection: RowConnection, where: Database) -> Finding:
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            postgres, pgvector = await migrate.versions(connection)
            await migrate.check(where.serving_url)
    except TimeoutError:
        return Finding("database", "it takes too long to say what its schema is", "See its load and its locks.")
    except LikewiseError as error:
        mend = "Run `likewise db upgrade`." if "db upgrade" in error.detail else _mend(settings)
        return Finding("database", error.detail, mend)
    kind = "named" if where.server is None else "embedded"
    return Finding("database", f"{kind}, Postgres {postgres}, pgvector {pgvector}; the schema is up to date")


async def _locale(connection: RowConnection) -> Finding:
    part, facts = "locale of the database", await checkup.server_facts(connection)
    if facts.encoding != "UTF8":
        what = f"its encoding is {facts.encoding}, which not every text fits into"
        return Finding(part, what, "Make a database with ENCODING 'UTF8' TEMPLATE template0, and name that one.")
    if facts.collation_changed:
        what = "its collation has another version than the one that its indexes were built with"
        return Finding(part, what, "As its owner: REINDEX DATABASE ...; ALTER DATABASE ... REFRESH COLLATION VERSION;")
    if facts.read_only:
        return Finding(part, "it takes no writes: it is a replica, or read-only", "Name the primary.")
    return Finding(part, f"{facts.encoding}")


async def _connections(settings: Settings, where: Database, connection: RowConnection) -> Finding:
    facts = await checkup.server_facts(connection)
    role = await checkup.role_facts(connection, roles.role_of(where.serving_url))
    limits = (facts.connections, facts.database_limit, -1 if role is None else role.limit)
    most = min(limit for limit in limits if limit >= 0)
    wanted = settings.database_connections + OTHER_CONNECTIONS
    what = f"{most} for Likewise, {facts.taken} taken; one process takes up to {wanted}"
    if wanted > most:
        fitting = max(2, most - OTHER_CONNECTIONS)
        mend = f"Set LIKEWISE_DATABASE_CONNECTIONS to {fitting} or less, or raise the server's or the role's limit."
        return Finding("connections", what, mend)
    return Finding("connections", what)


async def _clock(connection: RowConnection, now: Callable[[], float]) -> Finding:
    ahead = await checkup.clock_ahead(connection, now)
    if abs(ahead) > MAX_SKEW_SECONDS:
        what = f"it is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
        return Finding("clock of the database", what, "Let both machines take the time from one place (NTP).")
    return Finding("clock of the database", "it agrees with this machine's")


async def _roles(where: Database, connection: RowConnection) -> Finding:
    name = roles.role_of(where.serving_url)
    facts = await checkup.role_facts(connection, name)
    mend = "Set LIKEWISE_DATABASE_SERVING_URL to a plain role; `likewise db upgrade` makes one if it is unset."
    if facts is None:
        return Finding("roles", f"there is no role {name}", "Run `likewise db upgrade`.")
    if facts.is_superuser or facts.bypasses:
        power = "is a superuser" if facts.is_superuser else "bypasses row-level security"
        return Finding("roles", f"the serving role {name} {power}, so every caller would see every tenant's rows", mend)
    if facts.may_create:
        what = f"the serving role {name} may create objects in the schema likewise"
        return Finding("roles", what, f"REVOKE CREATE ON SCHEMA likewise FROM {name}; if it is the owner: {mend}")
    return Finding("roles", f"{name} serves; it owns nothing and sees one tenant at a time")


async def _text_key(settings: Settings, connection: RowConnection) -> Finding:
    part = "text key"
    try:
        source = text_key.source_of(settings)
        keys = source.keys()
        row = await (await connection.execute(text_key.RECORDED)).fetchone()
        if row is None:
            return Finding(part, "none as yet: the first start makes or takes one")
        in_use = text_key.chosen(source, keys, row[0])
    except WrongTextKey as error:
        return Finding(part, error.what, error.fix)
    if settings.text_key is not None and in_use.id != keys[0].id:
        mend = "Set LIKEWISE_TEXT_KEY to it, unset LIKEWISE_TEXT_KEY_NEXT, and destroy the old key."
        return Finding(part, "the database's is LIKEWISE_TEXT_KEY_NEXT already", mend)
    return Finding(part, f"the database's, from {source.name}")


async def _index(settings: Settings, connection: RowConnection) -> Finding:
    tables = await checkup.vector_tables(connection)
    faulty = [(table, fault) for table in tables if (fault := table.fault)]
    if not faulty:
        built = sum(table.being_built for table in tables)
        return Finding("index", f"{len(tables)} sets of vectors{f', {built} being indexed' if built else ''}")
    first, fault = faulty[0]
    more = f" ({len(faulty) - 1} more like it)" if len(faulty) > 1 else ""
    if settings.database_serving_url and not settings.database_url:
        mend = "Give a `likewise serve` or `likewise worker` the owner's LIKEWISE_DATABASE_URL: it builds indexes."
    else:
        mend = "Let `likewise serve` or `likewise worker` run: it builds the index anew beside its work."
    return Finding("index", f"generation {first.generation} {fault}{more}; searches are right, and slow", mend)


async def _waiting(settings: Settings, connection: RowConnection) -> Finding:
    oldest = await checkup.oldest_waiting(connection)
    if not oldest:
        return Finding("waiting", "nothing waits for a vector")
    model, seconds = max(oldest.items(), key=lambda item: item[1])
    what = f"the oldest text without a vector waits {seconds:.0f} s for {model}"
    if seconds <= settings.lease_seconds + WAITING_SECONDS:
        return Finding("waiting", what)
    if model not in {spec.name for spec in Catalogue(settings).specs()}:
        mend = "Name that model in LIKEWISE_MODELS_ALLOWED, here and where a worker runs."
        return Finding("waiting", f"{what}, which the settings do not allow", mend)
    if not await checkup.others_connected(connection):
        return Finding("waiting", f"{what}, and no worker runs", "Run `likewise serve` or `likewise worker`.")
    mend = "GET /readyz says how its model is; where LIKEWISE_EMBED_WORKER=false everywhere, run `likewise worker`."
    return Finding("waiting", f"{what}; Likewise runs, and does not embed it", mend)


async def _failed(connection: RowConnection) -> Finding:
    failed = await checkup.failed_texts(connection)
    if not failed:
        return Finding("failed texts", "none")
    reasons = ", ".join(f"{reason} {count}" for reason, count in failed.items())
    what = f"{sum(failed.values())} could not be embedded ({reasons}), and are found by their words only"
    return Finding(
        "failed texts", what, "Send records whose `vector` is `failed` again with another text, or delete them."
    )


def _serving_name(settings: Settings) -> str:
    return "LIKEWISE_DATABASE_SERVING_URL" if settings.database_serving_url else f"{roles.URL_FILE} in the data folder"


def _mend(settings: Settings) -> str:
    for name, url in (("URL", settings.database_url), ("SERVING_URL", settings.database_serving_url)):
        if url:
            return f"Fix that, or unset LIKEWISE_DATABASE_{name} for the embedded one."
    return "Fix that; the embedded Postgres logs to `postgres/log` in the data folder."
