"""Failures of Postgres, without what it quotes.

Messages and details of Postgres repeat values of rows and statements, so only SQLSTATE, table and constraint go on.
"""

import re
from dataclasses import dataclass

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from likewise.errors import DatabaseUnavailable, Internal, LikewiseError, NotFound

# Deadlock, serialisation failure, a referenced row that has just gone: the whole transaction can be tried again.
RETRYABLE = frozenset({"40P01", "40001", "23503"})
TABLE_GONE = "42P01"
LOCK_TIMEOUT = "55P03"
TOO_MANY = "54000"
UNIQUE = "23505"
DISK_FULL = "53100"

# A collection's own tables are the only ones that go away.
_TABLE_OF_A_COLLECTION = re.compile(r"\b(vec|terms)_\d+(_\d+)?\b")
# Out of resources, system errors, corrupted data, corrupted index.
STORAGE = ("53", "58", "XX001", "XX002")
# And connection exceptions, operator intervention.
_AWAY = ("08", "57", *STORAGE)


class DatabaseFailure(Internal):
    """The database refused a statement."""

    code = "database"

    def __init__(self, sqlstate: str | None, table: str | None = None, constraint: str | None = None) -> None:
        named = ", ".join(
            f"{name} {value}"
            for name, value in (("SQLSTATE", sqlstate), ("table", table), ("constraint", constraint))
            if value
        )
        super().__init__(f"The database refused a statement ({named or 'no SQLSTATE'}).")
        self.sqlstate = sqlstate
        self.table = table
        self.constraint = constraint


class Contended(DatabaseFailure):
    """Another transaction was in the way; the same one can be tried again."""

    status = 503
    retryable = True


class KeyChanging(Contended):
    """The key of texts that wait encrypted is being changed. Try again."""

    code = "text_key_changing"

    def __init__(self) -> None:
        super().__init__(None)
        self.detail = type(self).__doc__ or ""


class CollectionGone(NotFound):
    """The collection has just been dropped."""

    code = "collection_not_found"


def busy() -> DatabaseUnavailable:
    """Return the error for a caller for whom no connection was free in time."""
    return DatabaseUnavailable("All database connections are busy.", code="database_busy")


def scrubbed(error: Exception) -> LikewiseError:
    """Return the error to raise in place of one from psycopg; it never carries a value."""
    if isinstance(error, PoolTimeout | TooManyRequests):
        return busy()
    if isinstance(error, PoolClosed):
        return DatabaseUnavailable("The server is stopping.", code="stopping")
    if not isinstance(error, psycopg.Error):
        return Internal()
    state = error.sqlstate
    if state in RETRYABLE:
        return Contended(state, error.diag.table_name, error.diag.constraint_name)
    if state == TABLE_GONE and _TABLE_OF_A_COLLECTION.search(error.diag.message_primary or ""):
        return CollectionGone()
    if state == LOCK_TIMEOUT:
        return DatabaseUnavailable("This collection is busy, as while its index is built. Try again.", code="busy")
    if state is not None and state.startswith(_AWAY):
        return DatabaseUnavailable(why_away(state))
    if state is None and isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return DatabaseUnavailable()
    return DatabaseFailure(state, error.diag.table_name, error.diag.constraint_name)


def why_away(state: str) -> str:
    """Say what a SQLSTATE means that keeps the database from working now."""
    if state == DISK_FULL:
        return f"The disk of the database is full. Free some space on it (SQLSTATE {state})."
    return f"The database cannot do this now (SQLSTATE {state})."


@dataclass(frozen=True)
class NoConnection:
    """One reason and its fix, which names the setting as {name}; `sign` is what the driver's message has of it."""

    sign: str
    what: str
    fix: str


FULL = NoConnection(
    "too many clients|too many connections|remaining connection slots",
    "the server has no connection left",
    "Raise max_connections, or lower LIKEWISE_DATABASE_CONNECTIONS of the processes on it.",
)
# The driver gives no code for what goes wrong before a session begins, and its message quotes users and hosts.
NO_CONNECTION = (
    NoConnection("password authentication failed", "the server refuses its password", "Fix the password in {name}."),
    NoConnection(
        "not permitted to log in",
        "its role may not log in",
        "As a superuser: ALTER ROLE ... LOGIN for the role of {name}.",
    ),
    NoConnection(
        "no pg_hba.conf entry|(Peer|Ident) authentication failed|no password supplied",
        "the server does not let its role in from here",
        "Write user and password in {name}, or fix pg_hba.conf.",
    ),
    NoConnection(
        "permission denied for database",
        "its role may not connect to the database",
        "As the owner: GRANT CONNECT ON DATABASE ... TO the role of {name}.",
    ),
    NoConnection(
        'role ".*" does not exist', "there is no such role", "Fix the user in {name}, or run `likewise db upgrade`."
    ),
    NoConnection(
        'database ".*" does not exist', "there is no such database", "Make the database, or fix its name in {name}."
    ),
    FULL,
    NoConnection(
        "translate host name|resolve host|Name or service not known|nodename nor servname",
        "its host's name is not known",
        "Fix the host in {name}.",
    ),
    NoConnection(
        "[Cc]onnection refused|No such file", "nothing listens at its address", "Start Postgres, or fix {name}."
    ),
    NoConnection("timeout expired|timed out", "nothing answers at its address", "See the network, or fix {name}."),
    NoConnection("SSL|certificate", "no secured connection could be made", "Fix sslmode or the certificates."),
)
UNKNOWN = NoConnection("", "the database cannot be reached", "See that Postgres runs, and that {name} is right.")


def why_no_connection(error: psycopg.Error | TimeoutError) -> NoConnection:
    """Find the reason that kept a connection from being made, in words that hold nothing of the driver's own."""
    said = "timed out" if isinstance(error, TimeoutError) else str(error)
    return next((one for one in NO_CONNECTION if re.search(one.sign, said)), UNKNOWN)
