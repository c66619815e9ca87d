"""Searcher, the conductor: a question in, hits out."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from likewise import filters
from likewise.db import collections, lookups, terms
from likewise.db.collections import Collection
from likewise.db.failures import CollectionGone
from likewise.db.lookups import StoredRecord
from likewise.db.pool import Pool, Tx, retried
from likewise.db.where import Where, condition
from likewise.embedding.embedder import Embedder
from likewise.errors import Conflict, Invalid, NotFound, Unavailable
from likewise.kind import Kind
from likewise.observe.steps import Searching
from likewise.search.analyzer import analyze
from likewise.search.frequencies import TermFrequencies
from likewise.search.fusion import fuse
from likewise.vectors.admission import Admission
from likewise.vectors.store import Ranking, Vector, VectorStore

Mode = Literal["hybrid", "dense", "lexical"]

# What fusion was measured with; deeper brings little.
DEPTH = 100
# Of a long query, or a text that others like it are wanted of, so many terms are counted, and the rarest half ranked:
# each costs time, and the hundredth changes nothing.
MOST_COUNTED_TERMS = 128
MOST_RANKED_TERMS = 64
# Longer queries are analysed beside the event loop.
LONG_QUERY = 10_000
# Vectors fetched at a time to compare words' hits with a threshold.
CHUNK = 200


@dataclass(frozen=True)
class SearchRequest:
    """What is asked: a query's text, or the id of a record to find others like."""

    query: str | None = None
    like: str | None = None
    limit: int = 10
    filters: object | None = None
    mode: Mode = "hybrid"
    threshold: float | None = None


@dataclass(frozen=True)
class Found:
    """One record with how it was found. `similarity` is a cosine, None for a record without a vector."""

    score: float
    similarity: float | None
    lexical_score: float | None
    found_by: tuple[str, ...]
    record: StoredRecord


@dataclass(frozen=True)
class SearchResult:
    """Hits, best first; `degraded` names what was away while they were looked for."""

    hits: list[Found]
    model: str
    took_ms: float
    degraded: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Question:
    """What the rankings need to know."""

    vector: Vector | None
    terms: Sequence[int]
    without: int | None
    # The content that only the record in question has: it is no answer, and as the best it would dwarf all others.
    own: int | None = None


class Searcher:
    """Finds records by words, by meaning, or by both."""

    def __init__(self, pool: Pool, embedder: Embedder, admission: Admission, store: VectorStore) -> None:
        self._pool = pool
        self._embedder = embedder
        self._admission = admission
        self._store = store
        self._frequencies = TermFrequencies()

    async def search(self, tenant: int, name: str, kind: Kind, request: SearchRequest) -> SearchResult:
        """The best hits for a request. If as many records match as were asked for, that many come back.

        Raises:
            NotFound: the collection, or the record named by `like`.
            Invalid: a wrong filter, or words asked for where none are kept.
            ModelUnavailable: meaning was asked for (mode `dense`, or a threshold) and the model is away.
        """
        with Searching(request.mode) as step:
            return step.done(await self._timed(tenant, name, kind, request))

    async def _timed(self, tenant: int, name: str, kind: Kind, request: SearchRequest) -> SearchResult:
        started = time.perf_counter()
        tree = filters.parse(request.filters, kind.aliases)
        try:
            found = await self._search(tenant, name, kind, request, tree)
        except CollectionGone:
            # Its generation was retired just now and another answers, or the collection was dropped.
            found = await self._search(tenant, name, kind, request, tree)
        return replace(found, took_ms=(time.perf_counter() - started) * 1000)

    async def _search(
        self, tenant: int, name: str, kind: Kind, request: SearchRequest, tree: filters.Filter | None
    ) -> SearchResult:
        async with self._pool.tenant(tenant) as tx:
            collection = await collections.named(tx, name)
        self._refuse(collection, request)
        vector, degraded = await self._embed(tenant, collection, request)
        # Whoever drops the collection waits for its readers, and may be waited for by one.
        hits = await retried(lambda: self._look(tenant, collection, kind, request, tree, vector))
        return SearchResult(hits, collection.active.model, 0.0, degraded)

    @staticmethod
    def _refuse(collection: Collection, request: SearchRequest) -> None:
        if request.mode == "lexical" and not collection.policy.keep_terms:
            raise Invalid.at(
                "/mode",
                "This collection keeps no words (policy keep_terms is false); use mode dense.",
                "terms_not_kept",
            )

    async def _embed(
        self, tenant: int, collection: Collection, request: SearchRequest
    ) -> tuple[Vector | None, tuple[str, ...]]:
        """The query's vector, where one is needed and can be had."""
        needed = request.mode == "dense" or request.threshold is not None
        if request.query is None or (request.mode == "lexical" and not needed):
            return None, ()
        try:
            await self._admission.admit(tenant, collection.active)
            embedded = await self._embedder.embed(
                tenant, [request.query], model=collection.active.model, role="query", lane="interactive"
            )
        except Invalid as error:
            raise Invalid.at("/query", error.detail, error.faults[0].code) from None
        except Unavailable:
            # Words still find; only what cannot be answered without the meaning is refused.
            if needed or not collection.policy.keep_terms:
                raise
            return None, ("model",)
        return np.asarray(embedded.vectors)[0], ()

    async def _look(
        self,
        tenant: int,
        collection: Collection,
        kind: Kind,
        request: SearchRequest,
        tree: filters.Filter | None,
        vector: Vector | None,
    ) -> list[Found]:
        indexed = (*kind.indexed, *collection.policy.indexed)
        where = condition(tree, collection.id, indexed)
        async with self._pool.tenant(tenant, snapshot=True) as tx:
            question = await self._question(tx, collection, request, vector)
            among = None
            if tree is not None:
                among = await lookups.matching_contents(tx, where, without=question.without)
                if not among:
                    return []
            return await self._find(tx, collection, request, question, where, among)

    async def _find(
        self,
        tx: Tx,
        collection: Collection,
        request: SearchRequest,
        question: _Question,
        where: Where,
        among: Sequence[int] | None,
    ) -> list[Found]:
        depth = _depth(request)
        while True:
            dense, lexical = await self._rank(tx, collection, request, question, among, depth)
            found = await self._load(tx, collection, request, question, where, dense, lexical)
            # Of the words' best few may be near enough in meaning: those further down are looked at as well.
            exhausted = request.mode != "lexical" or request.threshold is None or len(lexical) < depth - 1
            if exhausted or len(found) >= request.limit:
                return found
            depth *= 10

    async def _question(
        self, tx: Tx, collection: Collection, request: SearchRequest, vector: Vector | None
    ) -> _Question:
        if request.like is None:
            words = [] if request.mode == "dense" else await _query_terms(request.query or "")
            return _Question(vector, words, None)
        found = await lookups.one(tx, collection.id, collection.active.id, request.like)
        if found is None:
            raise NotFound("There is no record of this id.", code="record_not_found")
        if request.mode != "lexical" or request.threshold is not None:
            fetched = await self._store.fetch(tx, collection.active, [found.content])
            vector = fetched.get(found.content)
            if vector is None and (request.mode == "dense" or request.threshold is not None):
                raise Conflict("This record has no vector yet. Try again soon.", code="waiting", retry_after=1)
        words = [] if request.mode == "dense" else await self._like_terms(tx, collection, found.content)
        shared = await lookups.shared(tx, found.content, found.pk)
        return _Question(vector, words, found.pk, None if shared else found.content)

    async def _like_terms(self, tx: Tx, collection: Collection, content: int) -> list[int]:
        if not collection.policy.keep_terms:
            return []
        return (await terms.of_content(tx, collection.id, content))[:MOST_COUNTED_TERMS]

    async def _rank(
        self,
        tx: Tx,
        collection: Collection,
        request: SearchRequest,
        question: _Question,
        among: Sequence[int] | None,
        depth: int,
    ) -> tuple[Ranking, list[tuple[int, float]]]:
        dense, lexical = Ranking((), ()), []
        if question.vector is None or request.mode == "lexical":
            await collections.hold_tables(tx, collection)
        if question.vector is not None and request.mode != "lexical":
            dense = await self._store.search(tx, collection.active, question.vector, depth, among)
        if question.terms and collection.policy.keep_terms:
            counted = await self._frequencies.of(tx, collection.id, question.terms)
            rare = dict(sorted(counted.items(), key=lambda item: (item[1], item[0]))[:MOST_RANKED_TERMS])
            # Where words alone answer, common ones must do if there are no others.
            least = _least(request, question, depth)
            lexical = await terms.rank(
                tx, collection.id, rare, collection.contents_total, depth, least=least, among=among
            )
        return dense.without(question.own), [item for item in lexical if item[0] != question.own]

    async def _load(
        self,
        tx: Tx,
        collection: Collection,
        request: SearchRequest,
        question: _Question,
        where: Where,
        dense: Ranking,
        lexical: list[tuple[int, float]],
    ) -> list[Found]:
        ranked = _ranked(request, collection, dense, lexical)
        similarities = dict(zip(dense.contents, dense.similarities, strict=True))
        words = dict(lexical)
        scores = dict(await self._best(tx, collection, request, question, ranked, similarities))
        loaded = await lookups.of_contents(
            tx, collection.active.id, list(scores), where, most=request.limit, without=question.without
        )
        by_meaning = frozenset(dense.contents)
        return [
            Found(
                scores[record.content],
                similarities.get(record.content),
                words.get(record.content),
                _found_by(record.content in by_meaning, record.content in words),
                record,
            )
            for record in loaded[: request.limit]
        ]

    async def _best(
        self,
        tx: Tx,
        collection: Collection,
        request: SearchRequest,
        question: _Question,
        ranked: list[tuple[int, float]],
        similarities: dict[int, float],
    ) -> list[tuple[int, float]]:
        """The first that are near enough, as many as were asked for: each content has a record at least."""
        if request.threshold is None:
            best = ranked[: request.limit]
            await self._complete(tx, collection, question, [one for one, _ in best], similarities)
            return best
        best = []
        for start in range(0, len(ranked), CHUNK):
            chunk = ranked[start : start + CHUNK]
            await self._complete(tx, collection, question, [one for one, _ in chunk], similarities)
            best += [item for item in chunk if similarities.get(item[0], -2.0) >= request.threshold]
            if len(best) >= request.limit:
                break
        return best[: request.limit]

    async def _complete(
        self,
        tx: Tx,
        collection: Collection,
        question: _Question,
        contents: Sequence[int],
        similarities: dict[int, float],
    ) -> None:
        """The similarities of what only its words found."""
        missing = [one for one in contents if one not in similarities]
        if question.vector is None or not missing:
            return
        for content, vector in (await self._store.fetch(tx, collection.active, missing)).items():
            norm = float(np.linalg.norm(vector)) or 1.0
            similarities[content] = float(question.vector @ vector) / norm


def _least(request: SearchRequest, question: _Question, depth: int) -> int:
    """How many hits of words there must be, if so many texts have any."""
    if question.vector is not None and request.mode != "lexical":
        return 0
    return request.limit + 1 if request.threshold is None else depth


async def _query_terms(query: str) -> list[int]:
    """A query's distinct terms, the first of a long one."""
    counted = analyze(query) if len(query) < LONG_QUERY else await asyncio.to_thread(analyze, query)
    return list(counted)[:MOST_COUNTED_TERMS]


def _depth(request: SearchRequest) -> int:
    # One more for a record in question, which is left out afterwards.
    return max(DEPTH, request.limit) + (request.like is not None)


def _ranked(
    request: SearchRequest, collection: Collection, dense: Ranking, lexical: list[tuple[int, float]]
) -> list[tuple[int, float]]:
    by_meaning = list(zip(dense.contents, dense.similarities, strict=True))
    if request.mode == "dense":
        return by_meaning
    if request.mode == "lexical":
        return lexical
    return fuse(by_meaning, lexical, depth=max(DEPTH, request.limit), background=collection.active.background)


def _found_by(by_meaning: bool, by_words: bool) -> tuple[str, ...]:
    return tuple(name for name, found in (("dense", by_meaning), ("lexical", by_words)) if found)
