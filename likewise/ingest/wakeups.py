"""Tells workers that something waits: at once within this process, by NOTIFY to others."""

import asyncio
import contextlib

from likewise.ingest.notices import Notices

CONTENTS, TASKS = "likewise_waiting", "likewise_tasks"


class Wakeups:
    """A bell that rings in all processes."""

    def __init__(self, notices: Notices, channel: str = CONTENTS) -> None:
        """On a channel of its own; before `notices` are started."""
        self._notices = notices
        self._channel = channel
        self._event = asyncio.Event()
        notices.hear(channel, lambda _: self._event.set())

    def mark(self) -> None:
        """Something waits since a moment ago."""
        self._event.set()
        self._notices.send(self._channel)

    def look_again(self) -> None:
        """Whoever waits here looks again; the other processes do not."""
        self._event.set()

    async def wait(self, seconds: float) -> None:
        """Until something may wait, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()
        self._event.clear()
