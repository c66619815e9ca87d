"""Why a connection could not be made, in words that hold nothing of the driver's own."""

from dataclasses import dataclass

import psycopg


@dataclass(frozen=True)
class NoConnection:
    """Why nobody gets in, and the mend. `signs` are words of the driver's message, which itself may hold anything."""

    signs: tuple[str, ...]
    what: str
    mend: str


NO_CONNECTION = (
    NoConnection(
        ("password authentication failed",), "the server refuses its password", "Mend the password in {name}."
    ),
    NoConnection(
        ("not permitted to log in",),
        "its role may not log in",
        "As a superuser: ALTER ROLE ... LOGIN for the role of {name}.",
    ),
    NoConnection(
        ("no pg_hba.conf entry", "Peer authentication failed", "Ident authentication failed", "no password supplied"),
        "the server does not let its role in from here",
        "Write user and password in {name}, or mend pg_hba.conf.",
    ),
    NoConnection(
        ("permission denied for database",),
        "its role may not connect to the database",
        "As the owner: GRANT CONNECT ON DATABASE ... TO the role of {name}.",
    ),
    NoConnection(("role ",), "there is no such role", "Mend the user in {name}, or run `likewise db upgrade`."),
    NoConnection(("database ",), "there is no such database", "Make the database, or mend its name in {name}."),
    NoConnection(
        ("too many clients", "too many connections", "remaining connection slots"),
        "the server has no connection left",
        "Raise max_connections, or lower LIKEWISE_DATABASE_CONNECTIONS of the processes on it.",
    ),
    NoConnection(
        ("could not translate host name", "resolve host", "Name or service not known"),
        "its host's name is not known",
        "Mend the host in {name}.",
    ),
    NoConnection(
        ("onnection refused", "No such file"), "nothing listens at its address", "Start Postgres, or mend {name}."
    ),
    NoConnection(
        ("timeout expired", "timed out"), "nothing answers at its address", "See the network, or mend {name}."
    ),
    NoConnection(("SSL", "certificate"), "no secured connection could be made", "Mend sslmode or the certificates."),
)
UNKNOWN = NoConnection((), "the database cannot be reached", "See that Postgres runs, and that {name} is right.")


def why_no_connection(error: psycopg.Error | TimeoutError) -> NoConnection:
    """What kept a connection from being made, told by signs: the driver gives no code for it."""
    said = "timed out" if isinstance(error, TimeoutError) else str(error)
    return next((one for one in NO_CONNECTION if _fits(one, said)), UNKNOWN)


def _fits(one: NoConnection, said: str) -> bool:
    """Messages that a name does not exist begin with what kind of thing it is."""
    if one.signs in (("role ",), ("database ",)):
        return f'{one.signs[0]}"' in said and "does not exist" in said
    return any(sign in said for sign in one.signs)
