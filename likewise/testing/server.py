"""`likewise serve` and `likewise worker` in processes of their own, to be asked over HTTP and to be killed."""

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import orjson

START_SECONDS = 180.0
# Longer than a server takes to drain; what is not over by then never is.
STOP_SECONDS = 120.0


class LiveProcess:
    """A verb that stays, over the data in `data_dir`, from its first line of output to its end.

    Args:
        data_dir: the data folder; a second start on it finds what the first one stored.
        environment: more LIKEWISE_* variables.
        log: where its log lines go.

    `program` is the module that `interpreter` runs, with what comes before the verb.
    """

    interpreter = sys.executable
    program: Sequence[str] = ("likewise",)
    arguments: Sequence[str]

    def __init__(
        self, data_dir: Path, environment: Mapping[str, str] | None = None, *, log: Path | None = None
    ) -> None:
        self.data_dir = data_dir
        self._environment = {"LIKEWISE_DATA_DIR": str(data_dir), **(environment or {})}
        self._log = log
        self._process: Process | None = None

    async def start(self) -> Self:
        """Start it and wait until it says that it is there; TimeoutError if it does not in three minutes."""
        with contextlib.ExitStack() as stack:
            log = DEVNULL if self._log is None else stack.enter_context(self._log.open("ab"))
            self._process = await asyncio.create_subprocess_exec(
                *(self.interpreter, "-m", *self.program, *self.arguments),
                env={**os.environ, **self._environment},
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=log,
            )
        try:
            self._started(orjson.loads(await self._first_line(self._process)))
        except BaseException:
            # Nobody will stop what was never started.
            await self.kill()
            raise
        return self

    async def _first_line(self, process: Process) -> bytes:
        if process.stdout is None:
            raise RuntimeError("The process has no output to tell that it is there by.")
        line = await asyncio.wait_for(process.stdout.readline(), START_SECONDS)
        if not line:
            raise RuntimeError(f"The process ended with exit code {await process.wait()} before it was there.")
        return line

    def _started(self, line: Mapping[str, str]) -> None:
        """Take note of its first line."""

    @property
    def pid(self) -> int:
        """The process's id."""
        if self._process is None:
            raise RuntimeError("The process is not started.")
        return self._process.pid

    async def kill(self) -> None:
        """SIGKILL: nothing of it runs on."""
        self._signal(signal.SIGKILL)
        await self._ended()

    async def stop(self) -> int:
        """SIGTERM, also if it is halted, and SIGKILL if it does not end in two minutes; returns its exit code."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)
        try:
            return await asyncio.wait_for(self._ended(), STOP_SECONDS)
        except TimeoutError:
            self._signal(signal.SIGKILL)
            return await self._ended()

    def _signal(self, what: signal.Signals) -> None:
        # One that has ended already is what was wanted.
        if self._process is None or self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, what)

    async def _ended(self) -> int:
        if self._process is None:
            return 0
        code = await self._process.wait()
        # Closes the pipe as well, which would else be reported when it is collected.
        self._process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001
        return code

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Start it for the time of the block, and stop it at its end."""
        await self.start()
        try:
            yield self
        finally:
            await self.stop()


class LiveServer(LiveProcess):
    """`likewise serve` on a free port of the loopback, with an embedded Postgres in `data_dir`."""

    arguments = ("serve", "--json", "--port", "0")
    url = ""

    def _started(self, line: Mapping[str, str]) -> None:
        self.url = line["url"]

    def postmaster_pid(self) -> int:
        """The id of its Postgres."""
        return int((self.data_dir / "postgres" / "data" / "postmaster.pid").read_text().split()[0])


class LiveWorker(LiveProcess):
    """`likewise worker` beside a server on the same data."""

    arguments = ("worker", "--json")
