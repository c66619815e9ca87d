"""The filter language: JSON in, a small tree out.

`{"lang": "en", "size": {"$gte": 10}, "$or": [{"tags": {"$contains": "x"}}, {"$not": {"status": "failed"}}]}`

Every key of an object must hold (and). A plain value means `$eq`. A key is a column of the record (`id`, `parent`,
`status`, `occurred_at`, `created_at`, `updated_at`), an app's own name for one, or else a field of the payload, taken
literally first and then as a path; `payload.x` reaches a field that such a name hides. Types that do not compare are
false.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from likewise.cleaning import cleaned
from likewise.errors import Invalid

MAX_DEPTH = 8
MAX_NODES = 100
MAX_VALUES = 1000

TIMES = frozenset({"occurred_at", "created_at", "updated_at"})
COLUMNS = frozenset({"id", "parent", "status"}) | TIMES
ORDERINGS = frozenset({"$gt", "$gte", "$lt", "$lte"})
OPERATORS = ORDERINGS | {"$eq", "$ne", "$in", "$nin", "$contains", "$exists"}
KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}\Z")
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


@dataclass(frozen=True)
class Field:
    """The field that a condition compares: a column of the record, or a field of its payload.

    `within` names an object of the payload where it is looked for as well.
    """

    name: str
    column: bool
    within: str = ""


@dataclass(frozen=True)
class Compare:
    """One field against one value; `$in` has a tuple of values, times of columns are datetimes."""

    field: Field
    operator: str
    value: Any


@dataclass(frozen=True)
class All:
    """Every part holds; with no parts, always."""

    parts: tuple["Filter", ...]


@dataclass(frozen=True)
class AnyOf:
    """At least one part holds."""

    parts: tuple["Filter", ...]


@dataclass(frozen=True)
class Not:
    """The part does not hold."""

    part: "Filter"


Filter = Compare | All | AnyOf | Not


def parse(raw: object, aliases: Mapping[str, str] | None = None, within: str = "") -> Filter | None:
    """Parse a filter into its tree; None for no filter.

    Args:
        aliases: an app's own names for columns, and for fields of the payload.
        within: the object of the payload whose fields are found by their names alone.

    Raises:
        Invalid: with a pointer under `/filters`, for anything the language does not have.
    """
    if raw is None or raw == {}:
        return None
    return _Parser(aliases or {}, within).whole(raw, "/filters", 1)


def field_named(key: str, aliases: Mapping[str, str] | None = None, within: str = "") -> Field:
    """Return the field of a key: a column, by its own name or an app's, or else a field of the payload."""
    name = (aliases or {}).get(key, key)
    if name in COLUMNS:
        return Field(name, column=True)
    return Field(name.removeprefix("payload.") or name, column=False, within=within)


def both(one: Filter | None, other: Filter | None) -> Filter | None:
    """Join two filters by and; None for no filter."""
    if one is None or other is None:
        return other if one is None else one
    return All((one, other))


class _Parser:
    def __init__(self, aliases: Mapping[str, str], within: str) -> None:
        self._aliases = aliases
        self._within = within
        self._nodes = 0

    def whole(self, raw: object, at: str, depth: int) -> Filter:
        if not isinstance(raw, dict):
            raise Invalid.at(at, "A filter is an object of fields and conditions.", "invalid_filter")
        if depth > MAX_DEPTH:
            raise Invalid.at(at, f"Filters nest at most {MAX_DEPTH} deep.", "filter_too_deep")
        if not raw:
            self._count(at)
        parts = [part for key, value in raw.items() for part in self._entry(key, value, at, depth)]
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _entry(self, key: object, value: object, at: str, depth: int) -> Iterator[Filter]:
        if not isinstance(key, str):
            raise Invalid.at(at, "A key of a filter is a text.", "invalid_key")
        if key in ("$and", "$or"):
            yield self._list(key, value, f"{at}/{key}", depth)
        elif key == "$not":
            self._count(at)
            yield Not(self.whole(value, f"{at}/$not", depth + 1))
        elif key.startswith("$"):
            raise Invalid.at(at, "Unknown operator here; $and, $or and $not join filters.", "unknown_operator")
        else:
            yield from self._field(key, value, at, depth)

    def _list(self, key: str, value: object, at: str, depth: int) -> Filter:
        self._count(at)
        if not isinstance(value, list) or not value:
            raise Invalid.at(at, f"{key} takes a list with at least one filter.", "invalid_filter")
        parts = tuple(self.whole(part, f"{at}/{place}", depth + 1) for place, part in enumerate(value))
        return All(parts) if key == "$and" else AnyOf(parts)

    def _field(self, key: str, value: object, at: str, depth: int) -> Iterator[Filter]:
        if not KEY.match(key):
            raise Invalid.at(at, f"A key of a filter matches {KEY.pattern[:-2]}.", "invalid_key")
        field, here = field_named(key, self._aliases, self._within), f"{at}/{key}"
        if not isinstance(value, dict):
            yield self._compare(field, "$eq", value, here)
            return
        if not value:
            raise Invalid.at(here, 'A condition names an operator, such as {"$gte": 1}.', "invalid_filter")
        for operator, operand in value.items():
            if operator == "$not":
                self._count(here)
                if depth + 1 > MAX_DEPTH:
                    raise Invalid.at(here, f"Filters nest at most {MAX_DEPTH} deep.", "filter_too_deep")
                yield Not(All(tuple(self._field(key, operand, at, depth + 1))))
            else:
                yield self._compare(field, operator, operand, here)

    def _compare(self, field: Field, operator: str, value: object, at: str) -> Filter:
        self._count(at)
        if operator not in OPERATORS:
            known = ", ".join(sorted(OPERATORS | {"$not"}))
            raise Invalid.at(at, f"Unknown operator; there are {known}.", "unknown_operator")
        if operator == "$exists":
            if not isinstance(value, bool):
                raise Invalid.at(at, "$exists takes true or false.", "invalid_value")
        elif operator in ("$in", "$nin"):
            value = self._values(field, operator, value, at)
        else:
            value = self._scalar(field, value, at)
        if operator == "$ne":
            return Not(Compare(field, "$eq", value))
        if operator == "$nin":
            return Not(Compare(field, "$in", value))
        return Compare(field, operator, value)

    def _values(self, field: Field, operator: str, value: object, at: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise Invalid.at(at, f"{operator} takes a list of values.", "invalid_value")
        if len(value) > MAX_VALUES:
            raise Invalid.at(at, f"{operator} takes at most {MAX_VALUES} values.", "too_many_values")
        return tuple(self._scalar(field, one, f"{at}/{operator}/{place}") for place, one in enumerate(value))

    @staticmethod
    def _scalar(field: Field, value: object, at: str) -> Any:
        if isinstance(value, str) and field.column and field.name in TIMES:
            return parse_time(value, at)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return _number(value, at)
        if isinstance(value, str):
            # As stored values were cleaned, so that the same text still equals itself.
            return cleaned(value)
        if value is None or isinstance(value, bool):
            return value
        raise Invalid.at(at, "A value is a string, a number, true, false or null.", "invalid_value")

    def _count(self, at: str) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise Invalid.at(at, f"A filter has at most {MAX_NODES} conditions.", "filter_too_large")


def _number(value: float, at: str) -> int | float:
    """Read a number as JSON has them: an integer of more than 64 bits becomes a float."""
    try:
        if not isinstance(value, int) or abs(value) >= 2**64:
            value = float(value)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise Invalid.at(at, "Numbers are finite.", "invalid_value")
    return value


def parse_time(value: str, at: str) -> datetime:
    """Parse a time with its zone, into UTC.

    Raises:
        Invalid: at the pointer `at`, for text that is not an RFC 3339 time with a zone.
    """
    time = rfc_3339(value)
    if time is None:
        raise Invalid.at(at, why_no_time(value), "invalid_time")
    return time


def rfc_3339(value: str) -> datetime | None:
    """Return the time in UTC that an RFC 3339 text with its zone names, None if it is not one."""
    if not _RFC_3339.fullmatch(value):
        return None
    try:
        return datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def why_no_time(value: object) -> str:
    """Explain to a caller what is wrong with a value that `rfc_3339` does not take."""
    if isinstance(value, datetime) and value.utcoffset() is None:
        return "This time has no zone: make it one with tzinfo, as datetime.now(UTC) is."
    if isinstance(value, datetime) or (isinstance(value, str) and _RFC_3339.fullmatch(value)):
        return (
            "This is not in the range of times that are kept: years 1 to 9999 in UTC, days that the month has, "
            "seconds 0 to 59."
        )
    return "This must be a time in RFC 3339 with its zone, as in 2026-01-31T12:00:00Z."
