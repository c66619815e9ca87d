"""The words of the whole package: one name for one thing, nouns for classes, events that can be counted."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tools.house import House

HOUSE = House(Path(__file__).parent.parent)

# Names of types that two modules may share, with the reason.
SHARED: dict[str, str] = {}
# Names that said how a thing came to be and not what it is.
RETIRED = frozenset(
    "Answering Asked Asking Compared Forgetting Forgotten Grouping Indexed Keeping Looked Maker Making Notices Pace "
    "Place Room Slot Storing Taken Taking Telling Trouble Turns Waiting Wakeups Wanted Warmed Written".split()
)

LEVELS = frozenset({"debug", "info", "warning", "error", "exception", "critical"})
EVENT = re.compile(r"[a-z]+(_[a-z0-9]+)*")


def test_a_public_type_has_its_name_alone() -> None:
    repeated = {name: places for name, places in HOUSE.repeated_types.items() if name not in SHARED}
    assert repeated == {}


def test_docstrings_say_what_is_done_and_do_not_ask() -> None:
    assert HOUSE.questions == []


def test_limits_are_named_max_and_min() -> None:
    assert HOUSE.mosts == []


def test_classes_are_named_for_what_they_are() -> None:
    found = [
        f"{room.name} {node.name}"
        for room in HOUSE.rooms
        for node in ast.walk(room.tree)
        if isinstance(node, ast.ClassDef) and node.name.lstrip("_") in RETIRED
    ]
    assert found == []


def test_what_is_logged_is_an_event_in_snake_case() -> None:
    events = [(room, node) for room, node in _logged()]
    assert len(events) > 40
    assert [f"{room}:{node.lineno}" for room, node in events if not _is_event(node)] == []


def _logged() -> Iterator[tuple[str, ast.Call]]:
    for room in HOUSE.rooms:
        for node in ast.walk(room.tree):
            if isinstance(node, ast.Call) and _logs(node.func):
                yield room.name, node


def _logs(function: ast.expr) -> bool:
    """Tell `log.warning(...)`, and `(log.error if ... else log.warning)(...)`, from other calls."""
    if isinstance(function, ast.IfExp):
        return _logs(function.body)
    return (
        isinstance(function, ast.Attribute)
        and function.attr in LEVELS
        and isinstance(function.value, ast.Name)
        and function.value.id in ("log", "logger")
    )


def _is_event(call: ast.Call) -> bool:
    event = call.args[0] if len(call.args) == 1 else None
    return isinstance(event, ast.Constant) and EVENT.fullmatch(str(event.value)) is not None
