"""Kinds of records: the declarations of apps about what they keep."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from likewise.errors import Conflict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Payload = Mapping[str, Any]

# The name of the view that every kind has.
FIRST_VIEW = "text"
# One transaction holds this many records of a longer list.
BATCH = 500


@dataclass(frozen=True)
class Policy:
    """The policy of a collection: its treatment of texts."""

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
class View:
    """One way in which a kind's records are compared: by a text of theirs, or by a vector that is made from them.

    Args:
        name: what searches call it.
        text: the text that a record has in this view; None where it has none.
        vector: instead of a text, the vector, float32 (d,) of unit length, that is made from a record when it is new.
        made_from: the bytes that this vector depends on, so that records with the same share one; None for no vector.
        embedded: whether texts get a vector; else they are found by their words alone.
        model: which model embeds the texts; None for the collection's own.
        space: of made vectors, all that decides what they mean: another snapshot or recipe is another space.
        dimension: of made vectors.
        terms: whether texts are found by their words, if the collection's policy keeps them.
    """

    name: str = FIRST_VIEW
    text: Callable[[NewRecord], str | None] | None = None
    vector: "Callable[[NewRecord], NDArray[np.float32]] | None" = None
    made_from: Callable[[NewRecord], bytes | None] | None = None
    embedded: bool = True
    model: str | None = None
    space: str | None = None
    dimension: int | None = None
    terms: bool = True

    def __post_init__(self) -> None:
        """Refuse a view that nothing could be compared by."""
        if (self.text is None) == (self.vector is None):
            raise ValueError(f"the view {self.name} needs a text or a vector")
        if self.is_made and (self.made_from is None or self.space is None or self.dimension is None):
            raise ValueError(f"the view {self.name} needs made_from, space and dimension for the vectors that it makes")
        if self.text is not None and not (self.embedded or self.terms):
            raise ValueError(f"the view {self.name} has neither vectors nor words")

    @property
    def is_made(self) -> bool:
        """True if its vectors are made from records, and no model embeds them."""
        return self.vector is not None

    @property
    def has_terms(self) -> bool:
        """True if its contents are found by their words."""
        return self.text is not None and self.terms


# The record's own text.
TEXT = View(text=lambda record: record.text or "")


@dataclass(frozen=True)
class Kind:
    """The declaration of an app: how a record reads in each view, and which of its fields can be asked for.

    A record has at most one content in each of the `views`, and always one in the first, whose texts are embedded.
    `indexed` are payload fields kept in `record_fields`; `in_text` those that the first view's text itself determines;
    `aliases` the app's own names for the record's columns and for fields of its payload; `within` an object of the
    payload whose fields are found by their names alone.
    """

    name: str
    views: tuple[View, ...] = (TEXT,)
    indexed: tuple[str, ...] = ()
    in_text: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    within: str = ""
    policy: Policy = Policy()

    def __post_init__(self) -> None:
        """Refuse views that share a name, and a first one without vectors of texts."""
        if not self.views or self.views[0].text is None or not self.views[0].embedded:
            raise ValueError(f"the first view of {self.name} needs texts that are embedded")
        if len({view.name for view in self.views}) < len(self.views):
            raise ValueError(f"two views of {self.name} have one name")

    def text(self, record: NewRecord) -> str:
        """Return the text of a record in the first view."""
        read = self.views[0].text
        return (read(record) if read is not None else None) or ""

    @property
    def beside(self) -> tuple[View, ...]:
        """The views beside the first."""
        return self.views[1:]


class UnknownKind(Conflict):
    """The collection is of a kind that no app of this server knows."""

    code = "unknown_kind"


class Kinds:
    """The kinds of the apps that are there, by name."""

    def __init__(self, kinds: Iterable[Kind] = ()) -> None:
        self._by_name = {kind.name: kind for kind in kinds}

    def __contains__(self, name: str) -> bool:
        """Return whether the app of a kind is there."""
        return name in self._by_name

    def of(self, name: str) -> Kind:
        """Return the kind of a collection by the name in its row; UnknownKind if its app is not there."""
        if name not in self._by_name:
            raise UnknownKind(
                f"The collection is of the kind {name}, which no app of this process has. Open it where that app is."
            )
        return self._by_name[name]
