"""JSON where two readings of one document would be two truths: tokens, and sets of keys."""

import json
from typing import Any

from likewise.cleaning import deeper_than

MAX_DEPTH = 32


def strict_object(raw: bytes) -> dict[str, Any]:
    """A JSON object in UTF-8; ValueError if it is none, is nested deeper than 32 levels, or names something twice.

    NaN and infinities are no JSON. A number beyond a double comes as an infinity, which whoever wants a number refuses.
    """
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_distinct, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict) or deeper_than(value, MAX_DEPTH):
        raise ValueError("no object, or nested too deeply")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    named = dict(pairs)
    if len(named) != len(pairs):
        raise ValueError("a name comes twice")
    return named


def _refuse(_: str) -> None:
    raise ValueError("no number")
