"""The database as the command line sees it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import AsyncConnection

from likewise.db import migrate
from likewise.db.failures import scrubbed
from likewise.db.pool import Pool
from likewise.errors import SettingsError
from likewise.runtime import named_database, open_database
from likewise.settings import Settings


async def state_of(settings: Settings) -> dict[str, Any]:
    """Which database, its versions and its schema; an embedded one is started for it, and upgraded by that."""
    if settings.database_url or settings.database_serving_url:
        return {"database": "named"} | await look((await named_database(settings)).serving_url)
    async with open_database(settings) as database:
        return {"database": "embedded"} | await look(database.serving_url)


async def look(url: str) -> dict[str, Any]:
    """Versions and schema steps of a database."""
    try:
        async with await AsyncConnection.connect(url, autocommit=True) as connection:
            state = await migrate.schema_state(connection)
            postgres, pgvector = await migrate.versions(connection)
            return {
                "postgres": postgres,
                "pgvector": pgvector,
                "applied": list(state.applied),
                "missing": [step.name for step in state.missing],
            }
    except psycopg.Error as error:
        raise scrubbed(error) from None


@asynccontextmanager
async def opened_as_owner(settings: Settings, why: str) -> AsyncIterator[Pool]:
    """The database as its owner, for what the role that serves may not; SettingsError says why if nobody knows it."""
    async with open_database(settings) as database:
        if database.owner_url is None:
            raise SettingsError(f"{why} Set LIKEWISE_DATABASE_URL.")
        async with _one_connection(database.owner_url) as pool:
            yield pool


@asynccontextmanager
async def opened_to_serve(settings: Settings) -> AsyncIterator[Pool]:
    """The database as the role that serves."""
    async with open_database(settings) as database, _one_connection(database.serving_url) as pool:
        yield pool


@asynccontextmanager
async def _one_connection(url: str) -> AsyncIterator[Pool]:
    pool = await Pool(url, max_size=1).open()
    try:
        yield pool
    finally:
        await pool.close()
