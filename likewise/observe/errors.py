"""What may be said about an error in a log: never its message, which may hold somebody's text."""

import traceback
from pathlib import Path
from typing import Any

_PACKAGE = str(Path(__file__).resolve().parent.parent)


def describe(error: BaseException, *, trace: bool = False) -> dict[str, Any]:
    """The type of an error, where it was raised, and of a database error its SQLSTATE, table and constraint.

    With `trace` the frames too: files, lines and functions, no values.
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
