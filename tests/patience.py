"""Waiting for what another task, process or server will do."""

import asyncio
import inspect
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

# What takes longer hangs, also beside several other suites on one machine.
PATIENCE = 240.0


async def until(holds: Callable[[], bool | Awaitable[bool]]) -> None:
    """Until something holds; TimeoutError if it does not in time."""
    async with asyncio.timeout(PATIENCE):
        while True:
            answer = holds()
            if await answer if inspect.isawaitable(answer) else answer:
                return
            await asyncio.sleep(0.005)


async def until_none_left(left: Callable[[], Awaitable[int]]) -> None:
    """Until nothing is left to do; TimeoutError if it does not become less in time, however much it is."""
    fewest = await left()
    while fewest:
        async with asyncio.timeout(PATIENCE):
            while (now := await left()) >= fewest:
                await asyncio.sleep(0.005)
        fewest = now


def hears_signals(pid: int) -> bool:
    """Return whether a process has a handler of its own for SIGTERM, which is when it begins its work; Linux knows."""
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or bool(int(_field(status.read_text(), "SigCgt"), 16) >> (signal.SIGTERM - 1) & 1)


def reads_standard_input(pid: int) -> bool:
    """Return whether a process has begun to read standard input, for which it opens it a second time; Linux knows."""
    files = Path(f"/proc/{pid}/fd")
    with suppress(OSError):  # a file was closed meanwhile
        return [file.readlink() for file in files.iterdir()].count((files / "0").readlink()) > 1
    return False


def _field(status: str, name: str) -> str:
    return status.partition(f"{name}:")[2].split()[0]
