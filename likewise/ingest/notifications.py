"""Postgres notifications between processes: one connection that listens, one that sends, and wake signals over both.

A NOTIFY inside the ingest's own transaction would make all commits wait for each other, so what only wakes others is
sent by a connection of its own, at most once in 20 ms. A lost one costs a poll, no more.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import psycopg
from psycopg import AsyncConnection
from psycopg.sql import SQL, Identifier

from likewise.db.transaction import Row
from likewise.stopping import stop

# The channels of waiting contents and of waiting tasks.
CONTENTS, TASKS = "likewise_waiting", "likewise_tasks"
NOTIFY = SQL("SELECT pg_notify(channel, '') FROM unnest(%s::text[]) AS channel")
SPACING_SECONDS = 0.02
RECONNECT_SECONDS = 1.0
# Who opens waits so long for the first connection, so that nothing is missed from then on.
START_SECONDS = 5.0
# A network that swallows everything is noticed within half a minute, as what would have come over it is missed.
KEEPALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}


class Notifications:
    """The two connections of a process, each opened again when it is lost."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._listeners: dict[str, tuple[Callable[[str], None], Callable[[], None] | None]] = {}
        self._to_send: set[str] = set()
        self._some = asyncio.Event()
        self._listening = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def listen(self, channel: str, heard: Callable[[str], None], missed: Callable[[], None] | None = None) -> None:
        """Listen to a channel; to be called before `start`.

        Args:
            heard: is called with each payload.
            missed: is called when some may have been missed, because the connection was lost.
        """
        self._listeners[channel] = heard, missed

    def send(self, channel: str) -> None:
        """Notify all processes that listen to a channel, a moment later."""
        self._to_send.add(channel)
        self._some.set()

    async def start(self) -> None:
        """Connect, and begin to send and to listen."""
        self._tasks = [asyncio.create_task(self._keep(self._send)), asyncio.create_task(self._keep(self._listen))]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                await self._listening.wait()
        # Where that was not enough, something may have been missed by then.
        self._listening.set()

    async def close(self) -> None:
        """Stop; notifications that were not sent yet are dropped."""
        await stop(self._tasks)

    async def _keep(self, work: Callable[[AsyncConnection[Row]], Awaitable[None]]) -> None:
        while True:
            try:
                connecting = AsyncConnection.connect(self._url, autocommit=True, **KEEPALIVE)  # type: ignore[arg-type]
                async with await connecting as connection:
                    await work(connection)
            except (psycopg.Error, OSError):
                # The pool's own callers report a database that is away; here it costs a poll only.
                await asyncio.sleep(RECONNECT_SECONDS)

    async def _send(self, connection: AsyncConnection[Row]) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            channels, self._to_send = self._to_send, set()
            await connection.execute(NOTIFY, [sorted(channels)])
            await asyncio.sleep(SPACING_SECONDS)

    async def _listen(self, connection: AsyncConnection[Row]) -> None:
        for channel in self._listeners:
            await connection.execute(SQL("LISTEN {}").format(Identifier(channel)))
        if self._listening.is_set():
            for _, missed in self._listeners.values():
                if missed is not None:
                    missed()
        self._listening.set()
        async for notice in connection.notifies():
            heard, _ = self._listeners[notice.channel]
            heard(notice.payload)


class WakeSignal:
    """A signal that something waits: at once within this process, by NOTIFY in the others."""

    def __init__(self, notifications: Notifications, channel: str = CONTENTS) -> None:
        """Listen to a channel; to be called before `notifications` are started."""
        self._notifications = notifications
        self._channel = channel
        self._event = asyncio.Event()
        notifications.listen(channel, lambda _: self.wake_here())

    def send(self) -> None:
        """Wake whoever waits, in all processes."""
        self._event.set()
        self._notifications.send(self._channel)

    def wake_here(self) -> None:
        """Wake whoever waits in this process alone."""
        self._event.set()

    async def wait(self, seconds: float) -> None:
        """Wait for the signal, or until the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()
        self._event.clear()
