"""Running a verb to its end: the event loop, the first Ctrl-C and those after it, the exit code."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import typer

from likewise.observe import logs, tracing
from likewise.observe.logs import log_unhandled
from likewise.settings import Settings, load_settings

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from likewise.library import Likewise

# 2 is wrong usage, which typer ends with itself.
OK, FAILED, NOT_STARTED, PARTLY = 0, 1, 3, 4
# Closing what is open takes a moment; who insists this often wants the process gone.
INSISTING = 4

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """SIGINT and SIGTERM: the first one does `act`, which cancels the verb unless the verb says otherwise.

    The next ones do nothing, so that a second Ctrl-C cannot cut short the closing of the embedded Postgres.
    """

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act
        self.signal: int | None = None
        self._times = 0

    def receive(self, number: int) -> None:
        """A signal came."""
        self._times += 1
        if self._times >= INSISTING:
            os._exit(128 + number)
        if self.signal is None:
            self.signal = number
            self.act()


Verb = Callable[[Interruption], Awaitable[int]]


def run(verb: Verb) -> None:
    """Run a verb and leave with the exit code that it returns, or with 128 + the signal that stopped it."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        code = runner.run(_interruptible(verb))
    raise typer.Exit(code)


def settings_of_verb(*, serving: bool = False, **overrides: object) -> Settings:
    """The settings, with logging set up: a verb that ends tells what went wrong itself, unless one asks for more."""
    settings = load_settings(**overrides)
    logs.configure("error" if settings.log_level == "info" and not serving else settings.log_level)
    if serving:
        tracing.configure()
    return settings


def opened(
    settings: Settings, *, worker: bool, wait_for_models: bool = True
) -> "AbstractAsyncContextManager[Likewise]":
    """The library, open while the context lasts; what serves others refuses callers while a model is on its way."""
    # Imported here, and in the verbs, not above: it brings the model runtime, and `--help` need not wait for that.
    from likewise import library  # noqa: PLC0415
    from likewise.cli.models import require_runnable  # noqa: PLC0415

    require_runnable(settings)
    return library.open(settings, worker=worker, wait_for_models=wait_for_models)


async def _interruptible(verb: Verb) -> int:
    task = asyncio.current_task()
    assert task is not None
    interruption = Interruption(task.cancel)
    loop = asyncio.get_running_loop()
    log_unhandled(loop)
    for number in _SIGNALS:
        loop.add_signal_handler(number, interruption.receive, number)
    try:
        return await verb(interruption)
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
