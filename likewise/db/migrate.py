"""Numbered SQL files, applied in order by the owner; a table remembers each with its checksum."""

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files

import psycopg
from psycopg import AsyncConnection
from psycopg.sql import SQL, Identifier

from likewise.db.failures import scrubbed
from likewise.db.transaction import ProgressReport, unreported
from likewise.errors import SchemaError

MIGRATIONS_TABLE = SQL("""
    CREATE TABLE IF NOT EXISTS likewise.schema_migrations (
        number int PRIMARY KEY, name text NOT NULL, checksum text NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT now()
    )
""")
APPLIED = SQL("SELECT number, checksum FROM likewise.schema_migrations ORDER BY number")
# By the catalogue: to_regclass fails for a role that may not use the schema.
HAS_TABLE = SQL("""
    SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                   WHERE n.nspname = 'likewise' AND c.relname = 'schema_migrations')
""")
REMEMBER = SQL("INSERT INTO likewise.schema_migrations (number, name, checksum) VALUES (%s, %s, %s)")
# One migrator at a time, whatever process it runs in.
ONE_AT_A_TIME = SQL("SELECT pg_advisory_lock(7718)")
VECTOR_SCHEMA = SQL(
    "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE extname = 'vector'"
)


MIN_POSTGRES = 15
MIN_PGVECTOR = (0, 8)
PGVECTOR = SQL("SELECT extversion FROM pg_extension WHERE extname = 'vector'")


@dataclass(frozen=True)
class Migration:
    """One step of the schema: its number, its name and its SQL with the places {server}, {owner}, {vectors}."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the SQL, in hex."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


@dataclass(frozen=True)
class SchemaState:
    """The steps that a database has (their numbers) and those that this program would still apply."""

    applied: tuple[int, ...]
    missing: tuple[Migration, ...]


def migrations() -> list[Migration]:
    """List all steps that this program knows, in order."""
    folder = files("likewise.db") / "migrations"
    found = sorted((file.name, file.read_text("utf-8")) for file in folder.iterdir() if file.name.endswith(".sql"))
    return [Migration(int(name.partition("_")[0]), name.removesuffix(".sql"), sql) for name, sql in found]


async def schema_state(connection: AsyncConnection[tuple[object, ...]]) -> SchemaState:
    """Compare a database with this program.

    Raises:
        SchemaError: the database is newer than this program, or a step was changed after it was applied.
    """
    exists = await (await connection.execute(HAS_TABLE)).fetchone()
    rows = await (await connection.execute(APPLIED)).fetchall() if exists and exists[0] else []
    known = {step.number: step for step in migrations()}
    for number, checksum in rows:
        if not isinstance(number, int) or number not in known:
            raise SchemaError(
                f"The database has schema {number} and this program knows up to {max(known)}. Run a newer Likewise."
            )
        if known[number].checksum != checksum:
            raise SchemaError(
                f"Schema step {number} is not the one that this database was made with. Run the Likewise that made it."
            )
    applied = tuple(int(str(row[0])) for row in rows)
    return SchemaState(applied, tuple(step for number, step in known.items() if number not in applied))


async def check(serving_url: str) -> None:
    """Refuse a database whose schema is missing, behind, ahead or changed."""
    try:
        async with await AsyncConnection.connect(serving_url, autocommit=True) as connection:
            await _refuse_old(connection)
            state = await schema_state(connection)
    except psycopg.errors.InsufficientPrivilege:
        raise SchemaError(
            "The role that serves may not use this schema. Set LIKEWISE_DATABASE_SERVING_URL to the role that the "
            "schema was made for."
        ) from None
    except psycopg.Error as error:
        raise scrubbed(error) from None
    if state.missing:
        raise SchemaError("The database's schema is older than this program. Run `likewise db upgrade`.")


async def upgrade(owner_url: str, *, server_role: str, report: ProgressReport | None = None) -> list[str]:
    """Apply what is missing, each step in a transaction of its own; return the names of the steps applied.

    `report` is told how many steps are done of how many, before the first and after each.
    """
    report = report or unreported
    try:
        async with await AsyncConnection.connect(owner_url, autocommit=True) as connection:
            await connection.execute(ONE_AT_A_TIME)
            schema = await _prepare(connection)
            await _refuse_old(connection)
            state = await schema_state(connection)
            for done, step in enumerate(state.missing):
                report(done, len(state.missing))
                await _apply(connection, step, server_role, schema)
            if state.missing:
                report(len(state.missing), len(state.missing))
            return [step.name for step in state.missing]
    except psycopg.Error as error:
        raise scrubbed(error) from None


async def versions(connection: AsyncConnection[tuple[object, ...]]) -> tuple[str, str | None]:
    """Return the versions of Postgres, and of pgvector if the database has it."""
    row = await (await connection.execute(PGVECTOR)).fetchone()
    return connection.info.parameter_status("server_version") or "unknown", str(row[0]) if row else None


async def _refuse_old(connection: AsyncConnection[tuple[object, ...]]) -> None:
    postgres, pgvector = await versions(connection)
    if connection.info.server_version < MIN_POSTGRES * 10_000:
        raise SchemaError(f"This is Postgres {postgres}, and Likewise needs {MIN_POSTGRES} or newer. Upgrade it.")
    if pgvector is not None and tuple(int(part) for part in re.findall(r"\d+", pgvector)[:2]) < MIN_PGVECTOR:
        minimum = ".".join(map(str, MIN_PGVECTOR))
        raise SchemaError(
            f"The database has pgvector {pgvector}, and Likewise needs {minimum} or newer. "
            "Install it, then run as a superuser: ALTER EXTENSION vector UPDATE;"
        )


async def _prepare(connection: AsyncConnection[tuple[object, ...]]) -> str:
    """Make the schema and the extension, where the owner may; return the schema that pgvector lives in."""
    await connection.execute(SQL("CREATE SCHEMA IF NOT EXISTS likewise"))
    found = await (await connection.execute(VECTOR_SCHEMA)).fetchone()
    if found is None:
        try:
            await connection.execute(SQL("CREATE EXTENSION vector SCHEMA likewise"))
        except psycopg.Error:
            raise SchemaError(
                "The database has no pgvector, and this role may not add it. "
                "As a superuser run: CREATE EXTENSION vector; (pgvector 0.8 or newer)"
            ) from None
    await connection.execute(MIGRATIONS_TABLE)
    return str(found[0]) if found else "likewise"


async def _apply(
    connection: AsyncConnection[tuple[object, ...]], step: Migration, server_role: str, schema: str
) -> None:
    owner = connection.info.user
    names = {"{server}": server_role, "{owner}": owner, "{vectors}": schema}
    text = step.sql
    for place, name in names.items():
        text = text.replace(place, Identifier(name).as_string(connection))
    async with connection.transaction():
        await connection.execute(SQL("SET LOCAL search_path = likewise, pg_temp"))
        await connection.execute(text.encode())
        await connection.execute(REMEMBER, [step.number, step.name, step.checksum])
