"""Print answers on stdout, notes on stderr, and read lines of standard input."""

import asyncio
import contextlib
import os
import re
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import islice
from typing import Any, TypeVar

import orjson
import typer

T = TypeVar("T")

STDIN = 0
MAX_FAULTS = 20

# Texts are other people's: an escape sequence in one must not reach the terminal.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Replace the characters that steer a terminal."""
    return _UNPRINTABLE.sub("\ufffd", text)


def say(text: str = "") -> None:
    """Print a line of an answer, on stdout."""
    print(printable(text), flush=True)


def say_json(value: Any) -> None:
    """Print an answer as one line of JSON, on stdout."""
    print(orjson.dumps(value, option=orjson.OPT_UTC_Z | orjson.OPT_NAIVE_UTC).decode(), flush=True)


def note(text: str) -> None:
    """Print a line about the work, on stderr."""
    print(printable(text), file=sys.stderr, flush=True)


def answer(value: Any, *lines: str, as_json: bool) -> None:
    """Print an answer: the value as JSON, or else the lines."""
    if as_json:
        say_json(value)
        return
    for line in lines:
        say(line)


def answer_list(name: str, rows: Sequence[T], line: Callable[[T], str], empty: str, *, as_json: bool) -> None:
    """Print rows: as JSON under a name, or else a line each, or a note where there are none."""
    answer({name: rows}, *map(line, rows), as_json=as_json)
    if not rows and not as_json:
        note(empty)


def note_faults(faults: Sequence[str], total: int | None = None) -> None:
    """Name the first of what was left out, and count the rest; `total` is of all where `faults` is cut off."""
    for fault in faults[:MAX_FAULTS]:
        note(f"Left out: {fault.rstrip('.')}.")
    more = (len(faults) if total is None else total) - MAX_FAULTS
    if more > 0:
        note(f"Left out: {more} more.")


def in_a_line(text: str, width: int = 100) -> str:
    """Cut a text to one line of at most this many characters."""
    line = " ".join(text[: 4 * width].split())
    return line if len(line) <= width else line[: width - 1] + "…"


def counted(number: int, one: str, several: str | None = None) -> str:
    """Write a number with its noun."""
    return f"{number} {one if number == 1 else several or one + 's'}"


def scores(score: float, similarity: float | None) -> str:
    """Write the score that orders the hits, then the cosine similarity."""
    return f"{score:.3f}  {'  -  ' if similarity is None else f'{similarity:.3f}'}"


def require_stdin(wanted: bool) -> None:
    """Refuse a command that is to read standard input, if the process was started with it closed (`<&-`)."""
    if wanted and sys.stdin is None:
        raise typer.BadParameter("Standard input is closed; give it a file or a pipe.", param_hint="'-'")


async def stdin_batches(size: int) -> AsyncIterator[list[bytes]]:
    """Read lists of `size` lines, the last one shorter; the next is read while one is worked on.

    Nobody waits for the reading thread: a command that is stopped ends at once, whatever the thread waits for.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[list[bytes] | OSError] = asyncio.Queue()
    room = threading.Semaphore(1)

    def hand_over(batch: list[bytes] | OSError) -> None:
        room.acquire()
        loop.call_soon_threadsafe(queue.put_nowait, batch)

    threading.Thread(target=_read_stdin, args=(size, hand_over), name="likewise-stdin", daemon=True).start()
    while batch := await queue.get():
        room.release()
        if isinstance(batch, OSError):
            raise batch
        yield batch


def _read_stdin(size: int, hand_over: Callable[[list[bytes] | OSError], None]) -> None:
    # RuntimeError: the loop is closed, so nobody wants any more.
    with contextlib.suppress(RuntimeError):
        try:
            # A file object of the thread's own: the interpreter locks and closes that of `sys.stdin` when it ends.
            file = open(os.dup(STDIN), "rb")  # noqa: SIM115, PTH123
            while lines := list(islice(file, size)):
                hand_over(lines)
            hand_over([])
        except OSError as error:
            hand_over(error)
