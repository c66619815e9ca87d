"""A database for Likewise on a Postgres where we are superuser: its roles, its schema, its extension."""

import asyncio
from typing import LiteralString

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier

OWNER, SERVER = "likewise_owner", "likewise_server"
# Any number, the same in every process: who makes roles and databases does so alone.
LOCK_KEY = 0x6C696B65
WAIT_SECONDS = 60.0
# What a server says that starts, or that ends all sessions because one of them crashed.
PASSING = ("the database system is", "server closed the connection unexpectedly")

LOCK = "SELECT pg_advisory_lock(%s)"
ROLE_EXISTS = "SELECT 1 FROM pg_roles WHERE rolname = %s"
MAKE_ROLE = "CREATE ROLE {role} LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION"
DATABASE_EXISTS = "SELECT 1 FROM pg_database WHERE datname = %s"
# template0: nothing that someone put into template1 comes along.
MAKE_DATABASE = "CREATE DATABASE {database} OWNER likewise_owner TEMPLATE template0"
# Installed and available version of pgvector; no row where it is not installed.
VECTOR_VERSIONS = """
    SELECT e.extversion, a.default_version
    FROM pg_extension e JOIN pg_available_extensions a ON a.name = e.extname
    WHERE e.extname = 'vector'
"""
UPDATE_VECTOR = "ALTER EXTENSION vector UPDATE"
# In one transaction, so that an installed extension means that all of it was done.
FURNISH: tuple[LiteralString, ...] = (
    "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
    "CREATE SCHEMA likewise AUTHORIZATION likewise_owner",
    "CREATE EXTENSION vector SCHEMA likewise",
    "REVOKE ALL ON DATABASE {database} FROM PUBLIC",
    "GRANT CONNECT, TEMPORARY ON DATABASE {database} TO likewise_owner, likewise_server",
    "ALTER ROLE likewise_owner IN DATABASE {database} SET search_path = likewise, public",
    "ALTER ROLE likewise_server IN DATABASE {database} SET search_path = likewise, public",
)


async def create_database(superuser_url: str, name: str) -> None:
    """Make the roles and the database if absent; any number of processes may do so at once.

    The database belongs to `likewise_owner` and has pgvector in the schema `likewise`; nobody but the two roles may
    connect. An older pgvector in it is updated to the one that is installed.
    """
    if await _exists(superuser_url, name) and await _is_furnished(_url_of(superuser_url, name)):
        return
    async with await connect(superuser_url) as connection:
        await connection.execute(LOCK, (LOCK_KEY,))
        await _make_roles(connection)
        if not await _found(connection, DATABASE_EXISTS, name):
            await connection.execute(SQL(MAKE_DATABASE).format(database=Identifier(name)))
        if not await _is_furnished(_url_of(superuser_url, name)):
            await _furnish(_url_of(superuser_url, name), name)


async def connect(url: str) -> psycopg.AsyncConnection:
    """Connect in autocommit; wait while the server starts or recovers from a crash of one of its processes."""
    end = asyncio.get_running_loop().time() + WAIT_SECONDS
    while True:
        try:
            return await psycopg.AsyncConnection.connect(url, autocommit=True)
        except psycopg.OperationalError as error:
            # libpq gives no SQLSTATE for a refused connection; the embedded server's messages are English.
            passing = any(sign in str(error) for sign in PASSING)
            if not passing or asyncio.get_running_loop().time() > end:
                raise
        await asyncio.sleep(0.02)


async def _exists(superuser_url: str, name: str) -> bool:
    async with await connect(superuser_url) as connection:
        return await _found(connection, DATABASE_EXISTS, name)


async def _make_roles(connection: psycopg.AsyncConnection) -> None:
    for role in (OWNER, SERVER):
        if not await _found(connection, ROLE_EXISTS, role):
            await connection.execute(SQL(MAKE_ROLE).format(role=Identifier(role)))


async def _is_furnished(url: str) -> bool:
    async with await connect(url) as connection:
        versions = await (await connection.execute(VECTOR_VERSIONS)).fetchone()
        if versions is not None and versions[0] != versions[1]:
            await connection.execute(UPDATE_VECTOR)
        return versions is not None


async def _furnish(url: str, name: str) -> None:
    async with await connect(url) as connection, connection.transaction():
        for statement in FURNISH:
            await connection.execute(SQL(statement).format(database=Identifier(name)))


async def _found(connection: psycopg.AsyncConnection, question: LiteralString, name: str) -> bool:
    return await (await connection.execute(question, (name,))).fetchone() is not None


def _url_of(url: str, database: str) -> str:
    return make_conninfo(url, dbname=database)
