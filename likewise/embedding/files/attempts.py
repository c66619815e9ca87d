"""Attempts at a model's files: fetching them, and loading them again once they or the time have changed."""

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from likewise.backoff import Backoff, Breaker
from likewise.embedding.files import weights
from likewise.embedding.models import ModelSpec
from likewise.errors import LikewiseError, ModelUnavailable, NotSupported
from likewise.progress import in_mebibytes, progress
from likewise.settings import Settings

FETCH_AGAIN = Backoff(30.0, 600.0)

# Path, size and time of change of each file that decides whether a model loads.
Signature = frozenset[tuple[str, int, int]]


class WeightsFetch:
    """Fetches of one model's files, which `allowed` permits, with pauses between those that fail.

    With `shown` stderr tells how far a fetch is.
    """

    def __init__(self, spec: ModelSpec, settings: Settings, *, shown: bool) -> None:
        self.allowed = False
        self._spec = spec
        self._settings = settings
        self._shown = shown
        self._breaker = Breaker[str](FETCH_AGAIN)
        self._stopping = threading.Event()

    def may_begin(self) -> bool:
        """Return whether the network may be asked for these files now."""
        return self.allowed and self._spec.folder is None and self._breaker.allows()

    async def run(self) -> Path:
        """Fetch the files, and return their folder; ModelUnavailable if no source has them."""
        what = f"Fetching {self._spec.name}"
        once = f"{what}, which is kept for the next time."
        try:
            with progress(f"{what} (MiB)", quiet=not self._shown, once=once) as report:
                show = in_mebibytes(report)

                def watch(done: int, total: int | None) -> None:
                    if self._stopping.is_set():
                        raise ModelUnavailable("not wanted any more")
                    show(done, total)

                return await _in_thread(lambda: weights.obtain(self._spec, self._settings, watch))
        finally:
            # Also after one that worked: whoever takes the files away has them fetched again, but not at once.
            self._breaker.failed("fetched")

    def stop(self) -> None:
        """End the fetch that runs."""
        self._stopping.set()


@dataclass(frozen=True)
class _LoadFailure:
    error: LikewiseError
    files: Signature
    until: float


class KnownFailure:
    """The error of files that could not be loaded: they are not read again before they change, or the pause is over."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._times = 0
        self._failure: _LoadFailure | None = None

    def refuse(self, files: Signature) -> None:
        """Raise the error of these files, rather than read 90 MB every other second to find it again."""
        failure = self._failure
        if failure is None or failure.files != files:
            self._times = 0
        elif time.monotonic() < failure.until:
            raise failure.error
        self._failure = None

    def remember(self, error: LikewiseError, files: Signature) -> None:
        """Note why these files could not be loaded; a fault in the files themselves lasts until they change."""
        if error.code == "model_memory":
            return
        self._times += 1
        pause = math.inf if _of_the_files(error) else self._backoff.pause(self._times)
        self._failure = _LoadFailure(error, files, time.monotonic() + pause)


def signature(folder: Path, settings: Settings) -> Signature:
    """Return what changes when a file of a model's folder, or a recorded checksum, is replaced."""
    signed = set()
    for path in weights.deciding_files(folder, settings):
        with contextlib.suppress(OSError):  # it went in between
            facts = path.stat()
            signed.add((str(path), facts.st_size, facts.st_mtime_ns))
    return frozenset(signed)


def _of_the_files(error: LikewiseError) -> bool:
    """Return whether the content of the files is wrong, and not the reading of them or a package that they need."""
    if isinstance(error.__cause__, OSError):
        return False
    return isinstance(error, NotSupported) or error.code.startswith("weights_")


async def _in_thread(work: Callable[[], Path]) -> Path:
    """Run work in a thread that nobody has to wait for when the process ends."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Path] = loop.create_future()

    def settle(result: Path | None, error: BaseException | None) -> None:
        if future.done():
            return
        if result is not None:
            future.set_result(result)
        elif error is not None:
            future.set_exception(error)

    def run() -> None:
        try:
            outcome: tuple[Path | None, BaseException | None] = (work(), None)
        except Exception as error:  # noqa: BLE001 - it is raised on the other side
            outcome = (None, error)
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, name="likewise-fetch", daemon=True).start()
    return await future
