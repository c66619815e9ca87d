"""What verbs print: answers on stdout, words about the work on stderr, progress only on a terminal."""

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

import orjson

# Texts are other people's: an escape sequence in one must not reach the terminal.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
# Without a terminal a line now and then says how far it is.
LINE_SECONDS = 10.0


class Report(Protocol):
    """Takes how much is done of how much; None while nobody knows."""

    def __call__(self, done: int, total: int | None) -> None:
        """Show it."""
        ...


def printable(text: str) -> str:
    """The text without characters that steer a terminal."""
    return _UNPRINTABLE.sub("\ufffd", text)


def say(text: str = "") -> None:
    """A line of an answer, on stdout."""
    print(printable(text), flush=True)


def say_json(value: Any) -> None:
    """An answer as one line of JSON, on stdout."""
    print(orjson.dumps(value, option=orjson.OPT_UTC_Z | orjson.OPT_NAIVE_UTC).decode(), flush=True)


def note(text: str) -> None:
    """A line about the work, on stderr."""
    print(printable(text), file=sys.stderr, flush=True)


def in_a_line(text: str, width: int = 100) -> str:
    """The beginning of a text as one line of at most this many characters."""
    line = " ".join(text[: 4 * width].split())
    return line if len(line) <= width else line[: width - 1] + "…"


def counted(number: int, one: str, several: str | None = None) -> str:
    """A number with its noun."""
    return f"{number} {one if number == 1 else several or one + 's'}"


class Scored(Protocol):
    """What was found, as far as its place in the list goes."""

    @property
    def score(self) -> float:
        """What orders the hits of one search."""
        ...

    @property
    def similarity(self) -> float | None:
        """The cosine."""
        ...


def scores(hit: Scored) -> str:
    """The score that orders the hits, then the cosine similarity."""
    similarity = "  -  " if hit.similarity is None else f"{hit.similarity:.3f}"
    return f"{hit.score:.3f}  {similarity}"


@contextmanager
def progress(what: str, *, quiet: bool = False) -> Iterator[Report]:
    """Show how far some work is, with its rate and the time left: a bar on a terminal, lines elsewhere."""
    if quiet or sys.stderr is None:
        yield _silent
    elif sys.stderr.isatty():
        with _bar(what) as report:
            yield report
    else:
        yield _Lines(what)


def _silent(done: int, total: int | None) -> None:
    pass


class _Lines:
    def __init__(self, what: str) -> None:
        self._what = what
        self._started = self._last = time.monotonic()

    def __call__(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now - self._last < LINE_SECONDS:
            return
        self._last = now
        rate = done / (now - self._started)
        if total is None:
            note(f"{self._what}: {done}, {rate:.0f}/s")
            return
        left = timedelta(seconds=round(max(total - done, 0) / rate)) if rate else "unknown"
        note(f"{self._what}: {done} of {total}, {rate:.0f}/s, {left} left")


@contextmanager
def _bar(what: str) -> Iterator[Report]:
    # Imported here: only a verb that draws a bar should pay for it.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        # Work that turns out to be none shows no bar.
        task = bar.add_task(what, total=None, rate="0", visible=False)
        started = time.monotonic()

        def report(done: int, total: int | None) -> None:
            rate = done / max(time.monotonic() - started, 1e-3)
            bar.update(task, completed=done, total=total, rate=f"{rate:.0f}", visible=True)

        yield report
