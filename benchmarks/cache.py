"""What the cache costs a request, and what Redis adds to it when it is well, and when it is not.

    python -m benchmarks.cache

Requests of one text each, through `Embedder` with a model that takes no time, so that what is measured is the cache:
texts that memory knows, that only Redis knows, and that nobody knows, in turn, each by an embedder without a Redis and
by one with it, so that whatever else the machine does is in both. First from one caller without a pause, then from
sixteen who pause after each request; with a Redis that is well, and with one in each kind of trouble, its beginning
included.
"""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from benchmarks.surroundings import machine
from likewise.embedding.embedder import Embedder
from likewise.observe import logs
from likewise.settings import Settings, load_settings
from likewise.testing import FakeProvider
from likewise.testing.redis import RedisProcess, SlowWay

KINDS = ("in memory", "in Redis", "unknown")
# With the seconds that each pauses: sixteen leave the process some of its time.
CALLERS = {1: 0.0, 16: 0.02}
# Of each kind, so that the slowest hundredth is some twenty.
REQUESTS = 2_000
AT_ONCE = 500

# By kind, and whether there is a Redis.
Times = dict[tuple[str, bool], list[float]]
Trouble = Callable[[AsyncExitStack], Awaitable[str]]


async def well(stack: AsyncExitStack) -> str:
    """One that is well."""
    return (await filled(stack)).url


async def refusing(_: AsyncExitStack) -> str:
    """Nobody listens."""
    return RedisProcess().url


async def silent(stack: AsyncExitStack) -> str:
    """It takes connections and answers nothing (SIGSTOP), from the middle of the requests on."""
    server = await filled(stack)
    asyncio.get_running_loop().call_later(0.3, server.pause)
    return server.url


async def slow(stack: AsyncExitStack) -> str:
    """Each answer takes 100 ms, from the middle of the requests on."""
    server = await filled(stack)
    way = await stack.enter_async_context(SlowWay(server.port, 0.0).running())
    asyncio.get_running_loop().call_later(0.3, setattr, way, "seconds", 0.1)
    return way.url


async def full(stack: AsyncExitStack) -> str:
    """It takes no new values."""
    server = await filled(stack)
    await server.execute("CONFIG", "SET", "maxmemory", "1")
    return server.url


STATES: dict[str, Trouble] = {
    "well": well,
    "down": refusing,
    "silent": silent,
    "slow": slow,
    "full": full,
}


def text(kind: str, number: int) -> str:
    """One of its kind."""
    return f"{kind}, the text of number {number}"


async def filled(stack: AsyncExitStack) -> RedisProcess:
    """A Redis that knows what it should."""
    server = await stack.enter_async_context(RedisProcess().running())
    async with an_embedder(server.url) as other:
        for start in range(0, REQUESTS, AT_ONCE):
            await other.embed(1, [text("in Redis", number) for number in range(start, start + AT_ONCE)])
        while await server.execute("DBSIZE") < REQUESTS:
            await asyncio.sleep(0.01)
    return server


@asynccontextmanager
async def an_embedder(url: str | None) -> AsyncIterator[Embedder]:
    """One with a model that takes no time."""
    with tempfile.TemporaryDirectory() as folder:
        settings: Settings = load_settings(data_dir=Path(folder), redis_url=url)
        embedder = Embedder(settings, providers={settings.model: lambda spec: FakeProvider()})
        await embedder.start()
        try:
            yield embedder
        finally:
            await embedder.close()


async def measured(url: str, callers: int) -> Times:
    """The seconds that each request took."""
    times: Times = {(kind, redis): [] for kind in KINDS for redis in (False, True)}
    async with an_embedder(None) as without, an_embedder(url) as with_redis:
        for embedder in (without, with_redis):
            await embedder.embed(1, [text("in memory", number) for number in range(AT_ONCE)])
        numbers = iter(range(REQUESTS))

        async def caller() -> None:
            for number in numbers:
                for kind in KINDS:
                    asked = text(kind, number % AT_ONCE if kind == "in memory" else number)
                    for embedder in (without, with_redis):
                        began = time.perf_counter()
                        await embedder.embed(1, [asked])
                        times[kind, embedder is with_redis].append(time.perf_counter() - began)
                        await asyncio.sleep(CALLERS[callers])

        await asyncio.gather(*(caller() for _ in range(callers)))
    return times


def shown(seconds: list[float]) -> str:
    """The middle, the slowest hundredth and the slowest, in milliseconds."""
    ordered = sorted(seconds)
    middle, slow, most = (ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.5, 0.99, 1))
    return f"{middle * 1000:>9.2f}{slow * 1000:>9.2f}{most * 1000:>8.0f}"


async def main() -> None:
    """Each state, with one caller and with sixteen."""
    logs.configure("error")
    print(machine())
    print(
        f"{'Redis':<10}{'callers':>8}  {'text':<12}"
        + "".join(f"{one:>12} p50, p99, most" for one in ("without", "with"))
    )
    for callers in CALLERS:
        for name, state in STATES.items():
            async with AsyncExitStack() as stack:
                times = await measured(await state(stack), callers)
            for kind in KINDS:
                row = shown(times[kind, False]) + shown(times[kind, True])
                print(f"{name:<10}{callers:>8}  {kind:<12}{row}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
