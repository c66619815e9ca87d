"""Ends of tasks that are certain."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

# A query that is cancelled waits until the database has ended it, on a busy machine some tenths of a second. Whoever
# cancels that wait too loses the connection, and has the driver warn of it.
AGAIN_SECONDS = 1.0


async def stop(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for their end; what they raised is dropped.

    Python 3.11's `asyncio.wait_for`, which the connection pool waits with, loses a cancellation that comes together
    with what was waited for: so they are cancelled again until they end.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        ended, left = await asyncio.wait(left, timeout=AGAIN_SECONDS)
        await asyncio.gather(*ended, return_exceptions=True)


async def to_its_end(work: Coroutine[Any, Any, T], hurry: Callable[[], None] | None = None) -> T:
    """Do work that must not be left half-way; who is cancelled meanwhile hears of it when the work has ended.

    A transaction that is cut off at its COMMIT may still be committed by the server a moment later, and half a start
    would leave a Postgres behind. `hurry` tells the work that nobody waits for it any more.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if hurry is not None:
            hurry()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
        raise
