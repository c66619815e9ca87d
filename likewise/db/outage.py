"""Outage: the time in which the database lets nobody in, and how long callers wait for a connection."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from contextvars import Context
from dataclasses import dataclass

import psycopg
from psycopg import AsyncConnection

from likewise.db.failures import busy
from likewise.errors import DatabaseUnavailable, LikewiseError
from likewise.observe.logs import get_logger
from likewise.stopping import stop


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


# A connection is waited for this long before the caller hears that all are busy. A restart of Postgres takes less.
POOL_TIMEOUT_SECONDS = 10.0
# And this long while it is known that none can be had.
AWAY_SECONDS = 0.5
# A server that answers, however busy, lets somebody in within this.
LOOK_SECONDS = 3.0
LOOK_AGAIN_SECONDS = 1.0

log = get_logger(__name__)


class Outage:
    """The time in which no connection can be had, told from one in which all are lent out."""

    def __init__(self, url: str, forget_connections: Callable[[], Awaitable[None]]) -> None:
        """Watch the database at `url`.

        Args:
            forget_connections: has only new ones given out from then on; those that are silent may hang.
        """
        self._url = url
        self._forget_connections = forget_connections
        self._looking = asyncio.Lock()
        self._looked_at = -LOOK_AGAIN_SECONDS
        self._away = False
        self._watching: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def patience(self) -> float:
        """The seconds that a connection is worth waiting for."""
        return min(AWAY_SECONDS, POOL_TIMEOUT_SECONDS) if self._away else POOL_TIMEOUT_SECONDS

    def over(self) -> None:
        """Note that a connection was had."""
        self._away = False

    async def refusal(self) -> LikewiseError:
        """Return the error for a caller for whom no connection was free in time: all are busy, or nobody is let in."""
        async with self._looking:
            if not self._away and time.monotonic() - self._looked_at > LOOK_AGAIN_SECONDS:
                await self._look()
        return DatabaseUnavailable() if self._away else busy()

    async def close(self) -> None:
        """Look no more."""
        self._closed = True
        if self._watching is not None:
            await stop([self._watching])

    async def _look(self) -> None:
        # Twice: this process may itself have been too busy to hear the first answer in time.
        why = await _why_nobody_is_let_in(self._url) and await _why_nobody_is_let_in(self._url)
        self._looked_at = time.monotonic()
        if why is None or self._closed:
            return
        log.error("database_away", reason=why.what)
        await asyncio.shield(self._forget_connections())
        self._away = True
        if self._watching is None or self._watching.done():
            # In a context of its own: it is no part of the request that found out.
            self._watching = asyncio.create_task(self._watch(), name="wait for the database", context=Context())

    async def _watch(self) -> None:
        """Look until the database is back, whether or not anybody asks for a connection."""
        while self._away:
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
            gone = await _why_nobody_is_let_in(self._url) is not None
            # Meanwhile a connection may have been had.
            self._away = self._away and gone
        log.warning("database_back")


async def _why_nobody_is_let_in(url: str) -> NoConnection | None:
    """Find why no session can be had, beside the pool; None if one can, or if others have them all."""
    try:
        async with asyncio.timeout(LOOK_SECONDS), await AsyncConnection.connect(url, autocommit=True):
            return None
    except (psycopg.Error, TimeoutError) as error:
        why = why_no_connection(error)
        return None if why is FULL else why
