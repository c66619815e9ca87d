"""Log lines: one JSON object each, pure ASCII, without texts, values or messages of errors."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

import structlog
from opentelemetry import trace
from structlog.stdlib import BoundLogger
from structlog.typing import EventDict, WrappedLogger

from likewise.observe.errors import describe
from likewise.observe.request_id import REQUEST_ID

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


def get_logger(name: str) -> BoundLogger:
    """A logger of structured lines on top of the standard one of this name.

    Pass an error as `error=`; its type and place are logged, never its message. A program that uses the library decides
    itself, by the standard `logging`, whether and where lines appear.
    """
    logger: BoundLogger = structlog.wrap_logger(
        logging.getLogger(name), processors=[structlog.stdlib.filter_by_level, _hand_over], wrapper_class=BoundLogger
    )
    return logger


def configure(level: str, stream: TextIO | None = None) -> None:
    """Send every log line of this process, libraries' too, to `stream` (stderr) as JSON."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _CHATTY:
        logging.getLogger(name).setLevel("WARNING" if level == "info" else level.upper())


class JsonLines(logging.Formatter):
    """A log record as one line of JSON.

    Every character outside printable ASCII is escaped, so no line can forge another or move a terminal's cursor.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
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
        return json.dumps(line, ensure_ascii=True, default=_type_only)


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
    """A library's message with numbers only: its other arguments may be rows, texts or addresses with passwords.

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
