"""A search as it is asked for: a question, and options that every app's searches share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from likewise.embedding.provider import Vector
from likewise.filters import Filter
from likewise.kind import FIRST_VIEW

Mode = Literal["hybrid", "dense", "lexical"]
# A hit for each record, or for each content with the number of its records.
HitUnit = Literal["records", "contents"]

# Of so many hits at least a reranker makes the order anew: it can move nothing to the front that is not among them, and
# each costs as much as the next, together about as long as somebody waits for a search gladly.
MIN_RERANKED = 50
# Hits can be paged to here; what lies deeper is better asked for with a filter.
MAX_HITS = 1_000


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Options of a search, the same for every question and every app.

    Attributes:
        limit: hits of a page.
        filters: JSON of the filter language.
        mode: what is ranked: words and meaning, meaning alone, or words alone.
        threshold: the minimum cosine similarity of a hit.
        group_by: a field of which every value has one hit, its best.
        rerank: whether the reranker of the settings puts the first hits in order.
        explain: whether the outcome has an explanation.
        view: the view of the kind that is compared; threshold and similarities are of it.
        fused_with: other views, whose rankings are fused with that one's, by record.
    """

    limit: int = 10
    filters: Mapping[str, Any] | None = None
    mode: Mode = "hybrid"
    threshold: float | None = None
    group_by: str | None = None
    rerank: bool = False
    explain: bool = False
    view: str = FIRST_VIEW
    fused_with: tuple[str, ...] = ()


class SearchKeywords(TypedDict, total=False):
    """The options of a search that programs name one by one; see SearchOptions."""

    limit: int
    filters: Mapping[str, Any] | None
    mode: Mode
    threshold: float | None
    group_by: str | None
    rerank: bool
    explain: bool
    view: str
    fused_with: tuple[str, ...]


@dataclass(frozen=True)
class TextQuestion:
    """A text to find records like."""

    text: str


@dataclass(frozen=True)
class TextsQuestion:
    """Several texts to find records like all of them: by the mean of their vectors, and by the words of any."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class RecordQuestion:
    """A record, by its id, to find others like."""

    id: str


@dataclass(frozen=True)
class ContentsQuestion:
    """Contents of the collection, by their keys, to find records like all of them; their own records are hits too."""

    contents: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class VectorQuestion:
    """A vector of the generation's space to find the nearest to: float32 (d,) of unit length."""

    vector: Vector


SearchQuestion = TextQuestion | TextsQuestion | RecordQuestion | ContentsQuestion | VectorQuestion


@dataclass(frozen=True)
class SearchRequest:
    """A question with its options.

    `offset` hits are passed over; `must` holds beside what the caller's own filters say.
    """

    question: SearchQuestion
    options: SearchOptions = SearchOptions()
    offset: int = 0
    must: Filter | None = None
    unit: HitUnit = "records"
