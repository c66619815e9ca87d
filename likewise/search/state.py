"""One search on its way: what was asked, of which collection, and what has been found out."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from likewise.db.collections import CollectionRow
from likewise.db.where import IndexedFields
from likewise.embedding.provider import Vector
from likewise.filters import Field, Filter
from likewise.kind import Kind
from likewise.search.options import SearchRequest

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """What the rankings need to know."""

    terms: Sequence[int]
    without: int | None = None
    # The content that only the record in question has: it is no answer, and as the best it would dwarf all others.
    own: int | None = None
    vector: Vector | None = None


@dataclass
class Search:
    """The state of one search. `vector` is the query's, once it is there; `degraded` names what was away.

    `asked` is the text that hits are reranked by: the query, or that of the record in question.
    """

    tenant: int
    collection: CollectionRow
    kind: Kind
    request: SearchRequest
    tree: Filter | None
    group_by: Field | None
    embedding: asyncio.Future[Vector | None] | None = None
    degraded: tuple[str, ...] = ()
    asked: str | None = None
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def indexed(self) -> IndexedFields:
        """The fields that indexes know."""
        of_texts = frozenset(self.kind.in_text)
        return IndexedFields(frozenset((*self.kind.indexed, *self.collection.policy.indexed)) - of_texts, of_texts)

    @property
    def by_meaning(self) -> bool:
        """Whether vectors are ranked."""
        return self.request.mode != "lexical"

    @property
    def by_words(self) -> bool:
        """Whether words are ranked."""
        return self.request.mode != "dense" and self.collection.policy.keep_terms

    @property
    def needs_vector(self) -> bool:
        """Whether there is no answer without the meaning."""
        return self.request.mode == "dense" or self.request.threshold is not None

    @property
    def skips(self) -> bool:
        """Whether some of the words' best are not near enough in meaning to be answered."""
        return not self.by_meaning and self.request.threshold is not None

    async def vector(self, question: Question) -> Vector | None:
        """The vector of the query, once it is made, or of the record in question."""
        return await asyncio.shield(self.embedding) if self.embedding is not None else question.vector

    async def step(self, name: str, work: Awaitable[T], facts: Callable[[T], dict[str, Any]]) -> T:
        """Do a step, and note how long it took and what it came to; one that is taken again adds up its time."""
        started = time.perf_counter()
        done = await work
        noted = self.steps.setdefault(name, {"ms": 0.0})
        noted.update(facts(done))
        noted["ms"] = round(noted["ms"] + (time.perf_counter() - started) * 1000, 2)
        return done
