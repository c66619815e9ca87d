"""Tasks are ended for certain, and what they end with is not cut off."""

import asyncio

from likewise.stopping import stop


async def test_a_task_that_is_slow_to_end_is_cancelled_once() -> None:
    # Given a task that ends as a query does that a busy database is slow to give up
    begun, cancelled = asyncio.Event(), []

    async def query() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append("once")
            try:
                await asyncio.sleep(0.4)
            except asyncio.CancelledError:
                cancelled.append("again")

    task = asyncio.create_task(query())
    await begun.wait()
    # When
    await stop([task])
    # Then
    assert (task.cancelled(), cancelled) == (True, ["once"])


async def test_a_task_that_loses_a_cancellation_is_cancelled_again() -> None:
    # Given
    begun = asyncio.Event()

    async def deaf() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.Event().wait()

    task = asyncio.create_task(deaf())
    await begun.wait()
    # When
    await stop([task])
    # Then
    assert task.cancelled()
