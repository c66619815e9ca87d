"""Standard input, a line at a time, without the event loop waiting for it."""

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import AsyncIterator
from typing import BinaryIO

STDIN = 0


async def batches(size: int) -> AsyncIterator[list[bytes]]:
    """Lists of `size` lines, the last one shorter; the next is read while one is worked on.

    The reading thread is nobody's to wait for: a verb that is stopped ends at once, whatever the thread waits for.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[list[bytes] | OSError] = asyncio.Queue(1)

    def read() -> None:
        # A file object of the thread's own: the interpreter locks and closes that of `sys.stdin` when it ends.
        file = open(os.dup(STDIN), "rb")  # noqa: SIM115, PTH123
        try:
            while _put(loop, queue, batch := _next(file, size)) and batch:
                pass
        except OSError as error:
            _put(loop, queue, error)

    threading.Thread(target=read, name="likewise-stdin", daemon=True).start()
    while batch := await queue.get():
        if isinstance(batch, OSError):
            raise batch
        yield batch


def _next(file: BinaryIO, size: int) -> list[bytes]:
    lines: list[bytes] = []
    while len(lines) < size and (line := file.readline()):
        lines.append(line)
    return lines


def _put(
    loop: asyncio.AbstractEventLoop, queue: "asyncio.Queue[list[bytes] | OSError]", item: list[bytes] | OSError
) -> bool:
    """Hand over an item once there is room; False if the verb has ended."""
    try:
        asyncio.run_coroutine_threadsafe(queue.put(item), loop).result()
    except (RuntimeError, concurrent.futures.CancelledError):
        return False
    return True
