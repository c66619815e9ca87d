"""Why a connection could not be made, in words that hold nothing of the driver's own."""

import re
from dataclasses import dataclass

import psycopg


@dataclass(frozen=True)
class NoConnection:
    """One reason and its mend, which names the setting as {name}; `sign` is what the driver's message has of it."""

    sign: str
    what: str
    mend: str


FULL = NoConnection(
    "too many clients|too many connections|remaining connection slots",
    "the server has no connection left",
    "Raise max_connections, or lower LIKEWISE_DATABASE_CONNECTIONS of the processes on it.",
)
# The driver gives no code for what goes wrong before a session begins, and its message quotes users and hosts.
NO_CONNECTION = (
    NoConnection("password authentication failed", "the server refuses its password", "Mend the password in {name}."),
    NoConnection(
        "not permitted to log in",
        "its role may not log in",
        "As a superuser: ALTER ROLE ... LOGIN for the role of {name}.",
    ),
    NoConnection(
        "no pg_hba.conf entry|(Peer|Ident) authentication failed|no password supplied",
        "the server does not let its role in from here",
        "Write user and password in {name}, or mend pg_hba.conf.",
    ),
    NoConnection(
        "permission denied for database",
        "its role may not connect to the database",
        "As the owner: GRANT CONNECT ON DATABASE ... TO the role of {name}.",
    ),
    NoConnection(
        'role ".*" does not exist', "there is no such role", "Mend the user in {name}, or run `likewise db upgrade`."
    ),
    NoConnection(
        'database ".*" does not exist', "there is no such database", "Make the database, or mend its name in {name}."
    ),
    FULL,
    NoConnection(
        "translate host name|resolve host|Name or service not known|nodename nor servname",
        "its host's name is not known",
        "Mend the host in {name}.",
    ),
    NoConnection(
        "[Cc]onnection refused|No such file", "nothing listens at its address", "Start Postgres, or mend {name}."
    ),
    NoConnection("timeout expired|timed out", "nothing answers at its address", "See the network, or mend {name}."),
    NoConnection("SSL|certificate", "no secured connection could be made", "Mend sslmode or the certificates."),
)
UNKNOWN = NoConnection("", "the database cannot be reached", "See that Postgres runs, and that {name} is right.")


def why_no_connection(error: psycopg.Error | TimeoutError) -> NoConnection:
    """What kept a connection from being made."""
    said = "timed out" if isinstance(error, TimeoutError) else str(error)
    return next((one for one in NO_CONNECTION if re.search(one.sign, said)), UNKNOWN)
