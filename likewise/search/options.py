"""What a search is asked, and what it answers."""

from dataclasses import dataclass
from typing import Any, Literal

from likewise.db.lookups import StoredRecord
from likewise.filters import Filter

Mode = Literal["hybrid", "dense", "lexical"]

# Of so many hits at least a reranker makes the order anew: it can move nothing to the front that is not among them, and
# each costs as much as the next, together about as long as somebody waits for a search gladly.
RERANKED = 50
# Hits can be paged to here; what lies deeper is better asked for with a filter.
MOST_HITS = 1_000


@dataclass(frozen=True)
class SearchRequest:
    """What is asked: a query's text, or the id of a record to find others like.

    `offset` hits are passed over; `group_by` names a field of which every value has one hit, its best; with `rerank`
    the reranker of the settings puts the first hits in order; `must` holds beside what the caller's own filters say.
    """

    query: str | None = None
    like: str | None = None
    limit: int = 10
    filters: object | None = None
    mode: Mode = "hybrid"
    threshold: float | None = None
    offset: int = 0
    group_by: str | None = None
    explain: bool = False
    rerank: bool = False
    must: Filter | None = None

    @property
    def wanted(self) -> int:
        """How many hits there must be to answer it, those passed over included."""
        return min(self.offset + max(self.limit, RERANKED if self.rerank else 0), MOST_HITS)


@dataclass(frozen=True)
class Found:
    """One record with how it was found. `similarity` is a cosine, None for a record without a vector.

    `score` is of the ranking, or of the reranker where that was asked for.
    """

    score: float
    similarity: float | None
    lexical_score: float | None
    found_by: tuple[str, ...]
    record: StoredRecord
    group: Any = None


@dataclass(frozen=True)
class SearchResult:
    """Hits, best first; `degraded` names what was away while they were looked for.

    `more` says that further hits can be asked for; `explanation` tells what was done, without a word of the query.
    """

    hits: list[Found]
    model: str
    took_ms: float
    degraded: tuple[str, ...] = ()
    more: bool = False
    explanation: dict[str, Any] | None = None
