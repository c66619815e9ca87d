"""One hit for each value of a field."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from likewise.db.fields import payload_field
from likewise.errors import Invalid
from likewise.filters import COLUMNS, KEY, All, Compare, Field, Filter, Not
from likewise.search.request import Found


class Groups:
    """The best hit of each value met so far, in the order in which they were met.

    Records without the field, or with a list or an object in it, are one group, whose value is null.
    """

    def __init__(self, field: Field | None) -> None:
        self.field = field
        self._best: dict[tuple[type, Any], Found] = {}
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
        return [value for _, value in self._best]

    def add(self, found: Found) -> Found:
        """Keep a hit if it is the first of its group."""
        assert self.field is not None
        value = _value(self.field, found)
        grouped = replace(found, group=value)
        # 1 and true are equal to Python, 1 and 1.0 to everyone.
        self._best.setdefault((bool if isinstance(value, bool) else object, value), grouped)
        return grouped

    def grown(self) -> bool:
        """Whether there are more groups than when this was asked last."""
        before, self._before = self._before, len(self._best)
        return self._before > before


def group_field(name: str | None, aliases: Mapping[str, str]) -> Field | None:
    """The field that hits are grouped by; Invalid for a name that no field can have."""
    if name is None:
        return None
    if not KEY.match(name):
        raise Invalid.at("/group_by", f"A field's name matches {KEY.pattern[:-2]}.", "invalid_key")
    column = aliases.get(name, name)
    if column in COLUMNS:
        return Field(column, column=True)
    return Field(name.removeprefix("payload.") or name, column=False)


def without_groups(tree: Filter | None, field: Field, values: Collection[Any]) -> Filter:
    """A filter that leaves out what belongs to groups already met."""
    others = Not(Compare(field, "$in", tuple(values)))
    return others if tree is None else All((tree, others))


def _value(field: Field, found: Found) -> Any:
    if field.column:
        return getattr(found.record, field.name)
    value = payload_field(found.record.payload, field.name)
    return None if isinstance(value, list | Mapping) else value
