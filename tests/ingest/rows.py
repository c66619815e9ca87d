"""What is in the tables, seen as their owner."""

from pathlib import Path
from typing import Any

from psycopg import AsyncConnection

from likewise.testing import DatabaseUrls


def url_of(data_dir: Path, user: str = "likewise_owner") -> str:
    """The database of a server in a process of its own, as that user."""
    return f"host={data_dir / 'postgres' / 'socket'} port=5432 user={user} dbname=likewise"


async def asked(database: DatabaseUrls | str, statement: Any, parameters: Any = None) -> list[tuple[Any, ...]]:
    """The rows of a statement, none if it has none; for another than a database's owner give a URL."""
    url = database if isinstance(database, str) else database.owner
    async with await AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("SET search_path = likewise, public")
        cursor = await connection.execute(statement, parameters)
        return await cursor.fetchall() if cursor.description else []
