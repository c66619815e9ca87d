"""What is in the tables, seen as their owner."""

from typing import Any, LiteralString

from psycopg import AsyncConnection
from psycopg.sql import SQL

from likewise.testing import DatabaseUrls


async def asked(database: DatabaseUrls, statement: LiteralString | SQL) -> list[tuple[Any, ...]]:
    """The rows of a statement."""
    async with await AsyncConnection.connect(database.owner, autocommit=True) as connection:
        await connection.execute("SET search_path = likewise")
        return await (await connection.execute(statement)).fetchall()
