"""Kind: what an app declares about the records it keeps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

Payload = Mapping[str, Any]

# One transaction holds this many records of a longer list.
BATCH = 500


@dataclass(frozen=True)
class Policy:
    """How a collection treats texts; part of its row."""

    keep_text: bool = True
    keep_terms: bool = True
    on_long: Literal["truncate", "refuse"] = "truncate"
    indexed: tuple[str, ...] = ()


@dataclass(frozen=True)
class NewRecord:
    """One record as it arrives, checked but not yet stored. `text` is what the kind makes vectors of."""

    id: str
    text: str | None = None
    payload: Payload = field(default_factory=dict)
    parent: str | None = None
    status: str | None = None
    occurred_at: datetime | None = None


@dataclass(frozen=True)
class Kind:
    """What an app declares: how a record reads as text, and which of its fields can be asked for.

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
