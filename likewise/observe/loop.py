"""Errors that nobody waits for, as those of a task that was dropped: the event loop hands them over here."""

import asyncio
from typing import Any

from likewise.observe.logs import get_logger

log = get_logger(__name__)


def log_unhandled(loop: asyncio.AbstractEventLoop) -> None:
    """Log them by type and place. The loop's own words for them hold the error's message and the task's arguments."""
    loop.set_exception_handler(_log)


def _log(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if isinstance(error, BaseException):
        log.error("unhandled", error=error)
    else:
        log.error("unhandled")
