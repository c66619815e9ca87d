"""Tells workers that something waits: at once within this process, by NOTIFY to others.

A NOTIFY inside the ingest's own transaction would make all commits wait for each other, so one connection of its own
sends at most one in 20 ms. A lost one costs a worker's poll, no more.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import psycopg
from psycopg import AsyncConnection
from psycopg.sql import SQL

from likewise.db.transaction import Row
from likewise.observe.logs import get_logger
from likewise.stopping import stop

NOTIFY = SQL("NOTIFY likewise_waiting")
LISTEN = SQL("LISTEN likewise_waiting")
SPACING_SECONDS = 0.02
RECONNECT_SECONDS = 1.0

log = get_logger(__name__)


class Wakeups:
    """One connection that sends and receives; `event` is set when something may wait."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._marked = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.event = asyncio.Event()

    def start(self) -> None:
        """Begin to send and to listen."""
        self._tasks = [asyncio.create_task(self._keep(self._send)), asyncio.create_task(self._keep(self._listen))]

    async def close(self) -> None:
        """Stop; a mark that was not sent yet is dropped."""
        await stop(self._tasks)

    def mark(self) -> None:
        """Something waits since a moment ago."""
        self.event.set()
        self._marked.set()

    async def wait(self, seconds: float) -> None:
        """Until something may wait, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.event.wait()
        self.event.clear()

    async def _keep(self, work: Callable[[AsyncConnection[Row]], Awaitable[None]]) -> None:
        while True:
            try:
                async with await AsyncConnection.connect(self._url, autocommit=True) as connection:
                    await work(connection)
            except (psycopg.Error, OSError):
                # The pool's own callers report a database that is away; here it costs a poll only.
                await asyncio.sleep(RECONNECT_SECONDS)

    async def _send(self, connection: AsyncConnection[Row]) -> None:
        while True:
            await self._marked.wait()
            self._marked.clear()
            await connection.execute(NOTIFY)
            await asyncio.sleep(SPACING_SECONDS)

    async def _listen(self, connection: AsyncConnection[Row]) -> None:
        await connection.execute(LISTEN)
        async for _ in connection.notifies():
            self.event.set()
