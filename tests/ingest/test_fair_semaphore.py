"""Permits go to tenants in turn."""

import asyncio

from likewise.ingest.fair_semaphore import FairSemaphore


async def test_a_flood_of_one_tenant_waits_behind_its_own() -> None:
    # Given
    connections, served, go = FairSemaphore(1), list[str](), asyncio.Event()

    async def work(tenant: int, name: str) -> None:
        async with connections.permit(tenant):
            served.append(name)
            await go.wait()

    tasks = [asyncio.create_task(work(1, f"flood {n}")) for n in range(5)]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(work(2, f"small {n}")) for n in range(2)]
    await asyncio.sleep(0)
    # When
    go.set()
    await asyncio.gather(*tasks)
    # Then
    assert served == ["flood 0", "flood 1", "small 0", "flood 2", "small 1", "flood 3", "flood 4"]


async def test_who_leaves_while_waiting_or_just_called_takes_no_permit() -> None:
    connections, go = FairSemaphore(2), asyncio.Event()

    async def work(tenant: int) -> None:
        async with connections.permit(tenant):
            await go.wait()

    for _ in range(20):
        tasks = [asyncio.create_task(work(n % 3)) for n in range(8)]
        await asyncio.sleep(0)
        tasks[4].cancel()
        go.set()
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        go.clear()
    # Both permits are there
    async with connections.permit(1), connections.permit(1):
        pass
