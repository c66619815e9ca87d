"""Kinds of records: the declarations of apps about what they keep."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from likewise.errors import Conflict

Payload = Mapping[str, Any]

# One transaction holds this many records of a longer list.
BATCH = 500


@dataclass(frozen=True)
class Policy:
    """The rules by which a collection treats texts; part of its row."""

    keep_text: bool = True
    keep_terms: bool = True
    on_long: Literal["truncate", "refuse"] = "truncate"
    indexed: tuple[str, ...] = ()


@dataclass(frozen=True)
class NewRecord:
    """A record as it arrives, checked but not yet stored. The kind makes vectors of `text`."""

    id: str
    text: str | None = None
    payload: Payload = field(default_factory=dict)
    parent: str | None = None
    status: str | None = None
    occurred_at: datetime | None = None


@dataclass(frozen=True)
class Kind:
    """The declaration of an app: how a record reads as text, and which of its fields can be asked for.

    `indexed` are payload fields kept in `record_fields`; `in_text` those that the text itself determines;
    `aliases` the app's own names for the record's columns and for fields of its payload; `within` an object of the
    payload whose fields are found by their names alone.
    """

    name: str
    text: Callable[[NewRecord], str]
    indexed: tuple[str, ...] = ()
    in_text: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    within: str = ""
    policy: Policy = Policy()


class UnknownKind(Conflict):
    """The collection is of a kind that no app of this server knows."""

    code = "unknown_kind"


class Kinds:
    """The kinds of the apps that are there, by name."""

    def __init__(self, kinds: Iterable[Kind] = ()) -> None:
        self._by_name = {kind.name: kind for kind in kinds}

    def of(self, name: str) -> Kind:
        """Return the kind of a collection by the name in its row; UnknownKind if its app is not there."""
        if name not in self._by_name:
            raise UnknownKind(
                f"The collection is of the kind {name}, which no app of this process has. Open it where that app is."
            )
        return self._by_name[name]
