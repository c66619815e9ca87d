"""One hit for each value of a field."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import orjson

from likewise.db.fields import payload_field
from likewise.errors import Invalid
from likewise.filters import KEY, All, Compare, Field, Filter, Not, field_named
from likewise.search.options import Found


class Groups:
    """The best hit of each value met so far, in the order in which they were met.

    Records without the field are one group, whose value is null; lists and objects are values like others.
    """

    def __init__(self, field: Field) -> None:
        self.field = field
        self._best: dict[object, Found] = {}
        self._before = 0

    def __len__(self) -> int:
        return len(self._best)

    @property
    def hits(self) -> list[Found]:
        """The hits, best first."""
        return list(self._best.values())

    @property
    def values(self) -> list[Any]:
        """The values of the groups."""
        return [found.group for found in self._best.values()]

    def add(self, found: Found) -> None:
        """Keep a hit if it is the first of its group."""
        value = _value(self.field, found)
        # 1 and 1.0 are one value, 1 and true are not, and lists cannot be keys.
        key = orjson.dumps(value, option=orjson.OPT_SORT_KEYS) if isinstance(value, bool | list | dict) else value
        self._best.setdefault(key, replace(found, group=value))

    def grown(self) -> bool:
        """Whether there are more groups than when this was asked last."""
        before, self._before = self._before, len(self._best)
        return self._before > before


def group_field(name: str | None, aliases: Mapping[str, str], within: str = "") -> Field | None:
    """The field that hits are grouped by; Invalid for a name that no field can have."""
    if name is None:
        return None
    if not KEY.match(name):
        raise Invalid.at("/group_by", f"A field's name matches {KEY.pattern[:-2]}.", "invalid_key")
    return field_named(name, aliases, within)


def without_groups(tree: Filter | None, field: Field, values: Collection[Any]) -> Filter:
    """A filter that leaves out what belongs to groups already met."""
    others = Not(Compare(field, "$in", tuple(values)))
    return others if tree is None else All((tree, others))


def _value(field: Field, found: Found) -> Any:
    if field.column:
        return getattr(found.record, field.name)
    payload = found.record.payload
    value = payload_field(payload, field.name)
    others = payload.get(field.within) if field.within and value is None else None
    return payload_field(others, field.name) if isinstance(others, Mapping) else value
