"""The role that serves, in a database of one's own: made once, its URL kept in a file of mode 0600."""

import os
import secrets
import tempfile
from pathlib import Path

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Identifier, Literal

from likewise.db.failures import scrubbed
from likewise.errors import SettingsError

SERVER_ROLE = "likewise_server"
URL_FILE = "serving.url"

EXISTS = SQL("SELECT 1 FROM pg_roles WHERE rolname = %s")
MAKE = SQL("CREATE ROLE {role} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD {password}")
ALLOW = SQL("GRANT CONNECT, TEMPORARY ON DATABASE {database} TO {role}")


def role_of(url: str) -> str:
    """Return the role that a URL logs in as."""
    return str(conninfo_to_dict(url).get("user") or SERVER_ROLE)


def stored_serving_url(data_dir: Path) -> str | None:
    """Return the serving URL that `db upgrade` made here, if it did."""
    file = data_dir / URL_FILE
    return file.read_text("utf-8").strip() if file.is_file() else None


async def make_serving_role(owner_url: str, data_dir: Path) -> str:
    """Make the role that serves, if it is not there, and keep its URL beside the data; return the URL.

    Raises:
        SettingsError: the role is there and its password is somewhere else, or the owner may not make roles.
    """
    # The file comes first: a role whose password was lost on the way could never be used.
    url = stored_serving_url(data_dir)
    known = url is not None
    if url is None:
        url = make_conninfo(owner_url, user=SERVER_ROLE, password=secrets.token_urlsafe(32))
    try:
        async with await AsyncConnection.connect(owner_url, autocommit=True) as connection:
            exists = await (await connection.execute(EXISTS, [SERVER_ROLE])).fetchone()
            if exists and not known:
                raise SettingsError(
                    f"The role {SERVER_ROLE} exists, and its URL is not known here. Set LIKEWISE_DATABASE_SERVING_URL."
                )
            if not exists:
                _keep(data_dir / URL_FILE, url)
                await connection.execute(MAKE.format(role=Identifier(SERVER_ROLE), password=_verifier(connection, url)))
            database = connection.info.dbname
            await connection.execute(ALLOW.format(database=Identifier(database), role=Identifier(SERVER_ROLE)))
    except psycopg.errors.InsufficientPrivilege:
        raise SettingsError(
            "The role of LIKEWISE_DATABASE_URL may not make the role that serves. Make a plain role with a password "
            "yourself and set LIKEWISE_DATABASE_SERVING_URL."
        ) from None
    except psycopg.Error as error:
        raise scrubbed(error) from None
    return url


def _verifier(connection: AsyncConnection[tuple[object, ...]], url: str) -> Literal:
    """Make the server's verifier of the password here: statements may be logged, and the password is not in them."""
    password = str(conninfo_to_dict(url)["password"])
    return Literal(
        connection.pgconn.encrypt_password(password.encode(), SERVER_ROLE.encode(), b"scram-sha-256").decode()
    )


def _keep(file: Path, url: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    # A new file of ours, mode 0600, in place of whatever is there.
    descriptor, name = tempfile.mkstemp(dir=file.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        out.write(url + "\n")
        out.flush()
        os.fsync(out.fileno())
    Path(name).replace(file)
