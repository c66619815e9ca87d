"""Cleaning of what cannot be stored: NUL and halves of surrogate pairs in texts, and values that are no JSON."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

# What is nested deeper is no payload of anybody's, and would exhaust the stack.
MAX_DEPTH = 100
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
# U+FFFD stands for a character that was lost on the way: two ids that differed may be one by now.
_UNFIT_FOR_ID = re.compile("[\x00-\x1f\x7f-\x9f\ufffd\ud800-\udfff]")


def cleaned(text: str) -> str:
    """Return the text with each NUL and lone surrogate as U+FFFD."""
    return _UNSTORABLE.sub("\ufffd", text) if _UNSTORABLE.search(text) else text


def storable(text: str) -> bool:
    """Return whether the text can stay as it is."""
    return not _UNSTORABLE.search(text)


def fit_for_id(text: str) -> bool:
    """Return whether the text can tell a record from every other one."""
    return not _UNFIT_FOR_ID.search(text)


def is_json(value: Any, depth: int = MAX_DEPTH) -> bool:
    """Return whether a value is JSON that keeps its meaning: finite numbers, 64-bit integers, distinct keys."""
    if isinstance(value, bool | str | None):
        return True
    if isinstance(value, int):
        return -(2**63) <= value < 2**64
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return depth > 0 and _keeps_its_keys(value) and all(is_json(one, depth - 1) for one in value.values())
    return isinstance(value, list | tuple) and depth > 0 and all(is_json(one, depth - 1) for one in value)


def _keeps_its_keys(value: Mapping[Any, Any]) -> bool:
    """Return whether all keys are texts, and none becomes another's by being cleaned."""
    if not all(isinstance(key, str) for key in value):
        return False
    return all(map(storable, value)) or len({cleaned(key) for key in value}) == len(value)


def cleaned_json(value: Any) -> Any:
    """Return a JSON value with every string in it cleaned, keys included."""
    if isinstance(value, str):
        return cleaned(value)
    if isinstance(value, Mapping):
        return {cleaned(str(key)): cleaned_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [cleaned_json(one) for one in value]
    return value


def deeper_than(value: Any, limit: int) -> bool:
    """Return whether lists and objects are nested in each other more than `limit` times."""
    level = [value] if isinstance(value, list | dict) else []
    for _ in range(limit):
        level = [child for node in level for child in _children(node) if isinstance(child, list | dict)]
        if not level:
            return False
    return bool(level)


def _children(node: Any) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node
