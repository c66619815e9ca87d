"""Log lines: one JSON object each, pure ASCII, without texts, values or messages of errors; each names its request."""

import asyncio
import json
import logging
import re
import secrets
import sys
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import structlog
from opentelemetry import trace
from structlog.stdlib import BoundLogger
from structlog.typing import EventDict, Processor, WrappedLogger

# The id that follows one request through answers, jobs and log lines.
REQUEST_ID: ContextVar[str | None] = ContextVar("likewise_request_id", default=None)
_HARMLESS_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

# What these say at `info` is of use only while debugging.
_CHATTY = (
    "uvicorn",
    "asyncio",
    "psycopg",
    "httpx2",
    "httpcore2",
    "filelock",
    "huggingface_hub",
    "urllib3",
    "opentelemetry",
)

# What libraries say in a finished sentence may quote anything; these are constants of theirs.
_HARMLESS = frozenset(
    {
        "Waiting for application startup.",
        "Application startup complete.",
        "Application startup failed. Exiting.",
        "Shutting down",
        "Waiting for connections to close. (CTRL+C to force quit)",
        "Waiting for background tasks to complete. (CTRL+C to force quit)",
        "Waiting for application shutdown.",
        "Application shutdown complete.",
        "Application shutdown failed. Exiting.",
        "Invalid HTTP request received.",
        "Exception in ASGI application\n",
        "ASGI callable returned without starting response.",
        "ASGI callable returned without completing response.",
    }
)
_WITHHELD = "a message that may hold values"
_PACKAGE = str(Path(__file__).resolve().parent.parent)

# Without it, Python writes warnings to the stderr of a program that has set up no logging, as raw dicts.
logging.getLogger("likewise").addHandler(logging.NullHandler())


def get_logger(name: str) -> BoundLogger:
    """Return a logger of events in snake_case, with facts as fields, on top of the standard one of this name.

    Pass an error as `error=`; its type and place are logged, never its message. A program that uses the library decides
    itself, by the standard `logging`, whether and where lines appear.
    """
    processors: list[Processor] = [structlog.stdlib.filter_by_level, _hand_over]
    return BoundLogger(logging.getLogger(name), processors, {})


def request_id_for(offered: str | None) -> str:
    """Return the caller's own id if it is harmless to repeat, else a new one."""
    if offered is not None and _HARMLESS_ID.fullmatch(offered):
        return offered
    return secrets.token_hex(16)


def configure(level: str, stream: TextIO | None = None) -> None:
    """Send every log line of this process, libraries' too, to `stream` (stderr) as JSON."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _CHATTY:
        logging.getLogger(name).setLevel("WARNING" if level == "info" else level.upper())


def log_unhandled(loop: asyncio.AbstractEventLoop) -> None:
    """Log errors that nobody waits for, as those of a task that was dropped, by type and place.

    The loop's own words for them hold the error's message and the task's arguments.
    """
    log = get_logger(__name__)

    def handle(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        facts = {"error": error} if isinstance(error, BaseException) else {}
        log.error("unhandled", **facts)

    loop.set_exception_handler(handle)


class JsonLines(logging.Formatter):
    """A log record as one line of JSON.

    Every character outside printable ASCII is escaped, so no line can forge another or move a terminal's cursor.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": "",
        }
        if request_id := REQUEST_ID.get():
            line["request_id"] = request_id
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            line["trace_id"] = format(span.trace_id, "032x")
        line.update(_fields(record))
        if record.exc_info and record.exc_info[1] is not None:
            line.update(_described(record.exc_info[1]))
        return _ENCODER.encode(line)


def _hand_over(_logger: WrappedLogger, _method: str, event: EventDict) -> tuple[tuple[Any], dict[str, Any]]:
    passed_on = {name: event.pop(name) for name in ("exc_info", "stack_info") if name in event}
    return (event,), passed_on


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    if isinstance(record.msg, dict):
        fields = dict(record.msg)
        error = fields.pop("error", None)
        if isinstance(error, BaseException):
            fields.update(_described(error))
        elif error is not None:
            fields["error"] = error
        return fields
    if record.name.partition(".")[0] == "likewise":
        return {"event": record.getMessage()}
    return {"event": _without_values(record)}


def _without_values(record: logging.LogRecord) -> str:
    """Return a library's message with numbers only: its other arguments may be rows, texts or addresses with passwords.

    One without arguments may be a finished sentence with all of these in it, so it is shown only if it is known.
    """
    template = str(record.msg)
    arguments = record.args if isinstance(record.args, tuple) else ()
    if not arguments:
        return template.strip() if template in _HARMLESS else _WITHHELD
    shown = tuple(value if isinstance(value, int | float) else _type_only(value) for value in arguments)
    try:
        return template % shown
    except (TypeError, ValueError):
        return template


def _described(error: BaseException) -> dict[str, Any]:
    return describe(error, trace=logging.getLogger().isEnabledFor(logging.DEBUG))


def _type_only(value: object) -> str:
    return f"<{type(value).__name__}>"


_ENCODER = json.JSONEncoder(ensure_ascii=True, default=_type_only)


def describe(error: BaseException, *, trace: bool = False) -> dict[str, Any]:
    """Return what may be logged of an error: its type and place, and a database's SQLSTATE, table and constraint.

    Its message may hold somebody's text, and is left out. With `trace` the frames are added: files, lines and
    functions, no values.
    """
    described: dict[str, Any] = {"error": _type_name(error), **_of_database(error)}
    if place := _place(error):
        described["at"] = place
    if cause := _cause(error):
        described = {"cause": _type_name(cause), **_of_database(cause), **described}
    if trace:
        described["trace"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in _frames(error)]
    return described


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _of_database(error: BaseException) -> dict[str, str]:
    # Read by attribute, the driver's or our own: this layer knows no database.
    diagnosis = getattr(error, "diag", None)
    found = {
        "sqlstate": getattr(error, "sqlstate", None),
        "table": getattr(diagnosis, "table_name", getattr(error, "table", None)),
        "constraint": getattr(diagnosis, "constraint_name", getattr(error, "constraint", None)),
    }
    return {name: value for name, value in found.items() if isinstance(value, str)}


def _cause(error: BaseException) -> BaseException | None:
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _frames(error: BaseException) -> traceback.StackSummary:
    return traceback.StackSummary.extract(traceback.walk_tb(error.__traceback__), lookup_lines=False)


def _place(error: BaseException) -> str | None:
    ours = [frame for frame in _frames(error) if frame.filename.startswith(_PACKAGE)]
    if not ours:
        return None
    return f"likewise{ours[-1].filename[len(_PACKAGE) :]}:{ours[-1].lineno}"
