"""Run a command to its end: options, settings, event loop, the first Ctrl-C and those after it, exit code."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Annotated, ParamSpec

import typer

from likewise.observe import logs, tracing
from likewise.observe.logs import log_unhandled
from likewise.settings import Settings, load_settings

# 2 is wrong usage, which typer ends with itself.
OK, FAILED, NOT_STARTED, PARTLY = 0, 1, 3, 4
# Closing what is open takes a moment; who insists this often wants the process gone.
INSISTING = 4

P = ParamSpec("P")

AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
ModelOption = Annotated[str | None, typer.Option("--model", help="Model, if not the default.")]
CollectionOption = Annotated[str, typer.Option("--collection", "-c", help="Name of the collection.")]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """SIGINT and SIGTERM: the first one does `act`, which cancels the command unless the command sets another.

    The next ones do nothing, so that a second Ctrl-C cannot cut short the closing of the embedded Postgres.
    """

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act
        self.signal: int | None = None
        self._times = 0

    def receive(self, number: int) -> None:
        """Act on the first signal, ignore the next, and leave at once on the fourth."""
        self._times += 1
        if self._times >= INSISTING:
            os._exit(128 + number)
        if self.signal is None:
            self.signal = number
            self.act()


Work = Callable[[Interruption], Awaitable[int | None]]


def run(work: Work) -> None:
    """Run until it ends, and leave with the exit code that it returns, or with 128 + the signal that stopped it."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        code = runner.run(_interruptible(work))
    raise typer.Exit(code or OK)


def in_loop(command: Callable[P, Awaitable[int | None]]) -> Callable[P, None]:
    """Make a command of a coroutine function, with the same parameters."""

    @wraps(command)
    def run_command(*args: P.args, **kwargs: P.kwargs) -> None:
        run(lambda _: command(*args, **kwargs))

    return run_command


def command_settings(*, serving: bool = False, **overrides: object) -> Settings:
    """Load the settings and set up logging: a command that ends prints errors itself, unless one asks for more."""
    settings = load_settings(**overrides)
    logs.configure("error" if settings.log_level == "info" and not serving else settings.log_level)
    if serving:
        tracing.configure()
    return settings


async def _interruptible(work: Work) -> int | None:
    task = asyncio.current_task()
    assert task is not None
    interruption = Interruption(task.cancel)
    loop = asyncio.get_running_loop()
    log_unhandled(loop)
    for number in _SIGNALS:
        loop.add_signal_handler(number, interruption.receive, number)
    try:
        return await work(interruption)
    except asyncio.CancelledError:
        if interruption.signal is None:
            raise
        return 128 + interruption.signal


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        # Not made for Windows; asyncio's own loop does the same, slower.
        return None
    return uvloop.new_event_loop
