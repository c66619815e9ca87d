"""Locks on files that end with their holder, however it ends."""

import contextlib
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl


class FileLock:
    """A `flock` on a file of its own, shared or exclusive.

    The kernel gives it up when the last process that has the file open through this object ends, so nothing is ever
    left to clean up after a kill. A child that inherits `descriptor` holds it too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = _open(path)
        _open_locks.add(self)

    def try_exclusive(self) -> bool:
        """Take it alone if nobody has it."""
        return self._try(fcntl.LOCK_EX)

    def try_shared(self) -> bool:
        """Take it beside others if nobody has it alone."""
        return self._try(fcntl.LOCK_SH)

    def exclusive_within(self, seconds: float, given_up: threading.Event | None = None) -> bool:
        """Take it alone, waiting for others to give it up, until that or `given_up` is set."""
        end = time.monotonic() + seconds
        while not self.try_exclusive():
            if time.monotonic() >= end or (given_up is not None and given_up.is_set()):
                return False
            time.sleep(0.005)
        return True

    def release(self) -> None:
        """Give it up for every process that shares this descriptor, and keep the file open."""
        if self.descriptor >= 0:
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file; children that inherited it go on holding the lock."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def held_by_another(self) -> bool:
        """Return whether someone holds it alone; this object must not hold it itself."""
        if self.try_shared():
            self.release()
            return False
        return True

    def _try(self, operation: int) -> bool:
        try:
            fcntl.flock(self.descriptor, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@contextlib.contextmanager
def open_lock(path: Path) -> Iterator[FileLock]:
    """Open a lock that is closed at the end of the block."""
    lock = FileLock(path)
    try:
        yield lock
    finally:
        lock.close()


_open_locks: "weakref.WeakSet[FileLock]" = weakref.WeakSet()


def _close_in_child() -> None:
    """Close the locks in a forked child, which would hold its parent's for as long as it lives."""
    for lock in tuple(_open_locks):
        lock.close()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_close_in_child)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    except PermissionError:
        # Locking needs no more than reading; root may have made the file for the user that runs Postgres.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
