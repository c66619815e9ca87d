"""`likewise db`: the schema of the database, and the purge of what was deleted."""

from typing import Any

import psycopg
import typer
from psycopg import AsyncConnection

from likewise.cli.running import FAILED, OK, PARTLY, AsJson, command_settings, in_loop
from likewise.cli.terminal import answer, counted, note
from likewise.db import migrate
from likewise.db.failures import scrubbed
from likewise.db.purge import PurgeOutcome
from likewise.db.purge import purge as purge_tables
from likewise.errors import SettingsError
from likewise.postgres.server import DATABASE
from likewise.progress import progress
from likewise.runtime import named_database, open_database, upgrade_database
from likewise.settings import Settings

MIB = 2**20

db = typer.Typer()


@db.command()
@in_loop
async def upgrade(as_json: AsJson = False) -> None:
    """Bring the database's schema up to date."""
    settings = command_settings()
    with progress("Upgrading the schema (steps)", quiet=as_json) as report:
        applied = await upgrade_database(settings, report)
    line = f"Applied: {', '.join(applied)}." if applied else "The schema is up to date."
    answer({"applied": applied}, line, as_json=as_json)


@db.command()
@in_loop
async def status(as_json: AsJson = False) -> int:
    """Show which database is used and how far its schema is."""
    state = await _state(command_settings())
    applied, missing = len(state["applied"]), len(state["missing"])
    lines = [
        f"Database: {state['database']}, Postgres {state['postgres']}, pgvector {state['pgvector']}.",
        f"Schema: {counted(applied, 'step')} applied, {missing} missing.",
    ]
    answer(state, *lines, *(["Run `likewise db upgrade`."] if missing else []), as_json=as_json)
    return FAILED if missing else OK


@db.command()
@in_loop
async def purge(as_json: AsJson = False) -> int:
    """Make what was deleted absent from the database's files. Each table is locked while it is written anew."""
    async with open_database(command_settings()) as database:
        if database.owner_url is None:
            raise SettingsError("What was deleted is purged by the owner of the database. Set LIKEWISE_DATABASE_URL.")
        if not as_json:
            note("Every table is written anew, one after the other, and locked for as long as that takes.")
        superuser = None if database.server is None else database.server.superuser_url(DATABASE)
        with progress("Purging (tables)", quiet=as_json) as report:
            purged = await purge_tables(database.owner_url, superuser, report=report)
    answer(purged, *_lines(purged), as_json=as_json)
    is_whole = not purged.busy and (superuser is None or not purged.unreached)
    return OK if is_whole else PARTLY


async def _state(settings: Settings) -> dict[str, Any]:
    """Look at the database and its schema; an embedded one is started for it, and upgraded by that."""
    if settings.database_url or settings.database_serving_url:
        return {"database": "named"} | await _look((await named_database(settings)).serving_url)
    async with open_database(settings) as database:
        return {"database": "embedded"} | await _look(database.serving_url)


async def _look(url: str) -> dict[str, Any]:
    try:
        async with await AsyncConnection.connect(url, autocommit=True) as connection:
            state = await migrate.schema_state(connection)
            postgres, pgvector = await migrate.versions(connection)
            missing = [step.name for step in state.missing]
            return {"postgres": postgres, "pgvector": pgvector, "applied": list(state.applied), "missing": missing}
    except psycopg.Error as error:
        raise scrubbed(error) from None


def _lines(purged: PurgeOutcome) -> list[str]:
    sizes = f"{purged.bytes_before / MIB:.1f} MiB before, {purged.bytes_after / MIB:.1f} MiB now"
    busy = f"Others were at these all the time, run this again: {', '.join(purged.busy)}."
    return [
        f"{counted(purged.tables, 'table')} written anew: {sizes}.",
        *([busy] if purged.busy else []),
        *(f"Not reached: {part}." for part in purged.unreached),
        f"Beyond this: {'; '.join(purged.elsewhere)}.",
    ]
