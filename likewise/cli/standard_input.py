"""Standard input, a line at a time, without the event loop waiting for it."""

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable
from itertools import islice
from typing import BinaryIO

import typer

STDIN = 0

_Batch = list[bytes] | OSError


def require(wanted: bool) -> None:
    """Wrong usage, if standard input is to be read and the process was started with it closed (`<&-`)."""
    if wanted and sys.stdin is None:
        raise typer.BadParameter("Standard input is closed; give it a file or a pipe.", param_hint="'-'")


async def batches(size: int) -> AsyncIterator[list[bytes]]:
    """Lists of `size` lines, the last one shorter; the next is read while one is worked on.

    The reading thread is nobody's to wait for: a verb that is stopped ends at once, whatever the thread waits for.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[_Batch] = asyncio.Queue()
    room = threading.Semaphore(1)

    def hand_over(batch: _Batch) -> None:
        room.acquire()
        loop.call_soon_threadsafe(queue.put_nowait, batch)

    threading.Thread(target=_read, args=(size, hand_over), name="likewise-stdin", daemon=True).start()
    while batch := await queue.get():
        room.release()
        if isinstance(batch, OSError):
            raise batch
        yield batch


def _read(size: int, hand_over: Callable[[_Batch], None]) -> None:
    # RuntimeError: the loop is closed, so nobody wants any more.
    with contextlib.suppress(RuntimeError):
        try:
            file = _opened()
            while lines := list(islice(file, size)):
                hand_over(lines)
            hand_over([])
        except OSError as error:
            hand_over(error)


def _opened() -> BinaryIO:
    # A file object of the thread's own: the interpreter locks and closes that of `sys.stdin` when it ends.
    return open(os.dup(STDIN), "rb")  # noqa: PTH123
