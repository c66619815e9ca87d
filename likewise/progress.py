"""Progress of work on stderr: a bar on a terminal, lines elsewhere."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

MIB = 2**20
# Without a terminal a line now and then says how far it is.
LINE_SECONDS = 10.0

# Two bars would draw over each other.
_drawing = threading.Lock()


# Takes how much is done of how much; None while nobody knows.
Report = Callable[[int, int | None], None]


@contextmanager
def progress(what: str, *, quiet: bool = False, once: str | None = None) -> Iterator[Report]:
    """Show how far some work is, with its rate and the time left: a bar on a terminal, lines elsewhere.

    Args:
        quiet: whether to show nothing.
        once: the one line, at the beginning, that is enough where there is no terminal.
    """
    if quiet or sys.stderr is None:
        yield silent
    elif sys.stderr.isatty() and _drawing.acquire(blocking=False):
        try:
            with _bar(what) as report:
                yield report
        finally:
            _drawing.release()
    elif once is not None:
        _print(once)
        yield silent
    else:
        yield _Lines(what)


def in_mebibytes(report: Report) -> Report:
    """A report that takes bytes, for one that shows MiB."""

    def shown(done: int, total: int | None) -> None:
        report(done // MIB, None if total is None else total // MIB)

    return shown


def _print(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def silent(done: int, total: int | None) -> None:
    """Show nothing."""


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
            _print(f"{self._what}: {done}, {rate:.0f}/s")
            return
        left = timedelta(seconds=round(max(total - done, 0) / rate)) if rate else "unknown"
        _print(f"{self._what}: {done} of {total}, {rate:.0f}/s, {left} left")


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
