"""Searcher, the conductor: a question in, hits out."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from likewise import filters
from likewise.db import lookups, matches
from likewise.db.collections import RecentCollections
from likewise.db.failures import CollectionGone
from likewise.db.pool import Pool, Tx, retried
from likewise.embedding.embedder import Embedder
from likewise.errors import Conflict, Invalid, NotFound, Unavailable
from likewise.filters import Filter
from likewise.kind import Kind
from likewise.observe.steps import Searching
from likewise.search.analyzer import analyze
from likewise.search.grouping import Groups, group_field, without_groups
from likewise.search.ranking import MOST_COUNTED_TERMS, Ranked, Rankings, first_depth
from likewise.search.request import MOST_HITS, Found, SearchRequest, SearchResult
from likewise.search.scope import Scope, Scopes
from likewise.search.state import Question, Search
from likewise.vectors.admission import Admission
from likewise.vectors.store import Vector, VectorStore

# How much deeper the rankings go each time that too few of theirs can be answered.
DEEPER = 10
# Longer queries are analysed beside the event loop.
LONG_QUERY = 10_000
# Contents that are loaded at a time when not all of them may be answered.
CHUNK = 200


class Searcher:
    """Finds records by words, by meaning, or by both."""

    def __init__(
        self,
        pool: Pool,
        embedder: Embedder,
        admission: Admission,
        store: VectorStore,
        recent: RecentCollections,
    ) -> None:
        self._pool = pool
        self._embedder = embedder
        self._admission = admission
        self._store = store
        self._rankings = Rankings(pool, store)
        self._scopes = Scopes()
        self._recent = recent

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
        grouped = group_field(request.group_by, kind.aliases)
        remembered = self._recent.knows(tenant, name)
        found = None
        with contextlib.suppress(CollectionGone):
            found = await self._search(tenant, name, kind, request, tree, Groups(grouped))
        if found is None or (remembered and not found.hits):
            # Its generation was retired just now and another answers, or it was dropped, and made anew perhaps.
            self._recent.forget(tenant, name)
            found = await self._search(tenant, name, kind, request, tree, Groups(grouped))
        return replace(found, took_ms=(time.perf_counter() - started) * 1000)

    async def _search(
        self, tenant: int, name: str, kind: Kind, request: SearchRequest, tree: Filter | None, groups: Groups
    ) -> SearchResult:
        search = Search(tenant, await self._recent.get(tenant, name), kind, request, tree, groups)
        _refuse(search)
        async with self._embedding(search):
            # Whoever drops the collection waits for its readers, and may be waited for by one.
            hits = await retried(lambda: self._look(search))
        page = hits[request.offset : request.wanted]
        more = len(hits) > request.wanted and request.wanted < MOST_HITS
        explanation = search.steps if request.explain else None
        return SearchResult(page, search.collection.active.model, 0.0, search.degraded, more, explanation)

    @contextlib.asynccontextmanager
    async def _embedding(self, search: Search) -> AsyncIterator[None]:
        """Have the query embedded while its filter and its words are looked at."""
        if search.request.query is None or not (search.by_meaning or search.needs_vector):
            yield
            return
        task = asyncio.ensure_future(search.step("embed", self._embed(search, search.request.query), _no_facts))
        search.embedding = task
        try:
            if not self._embedder.is_ready(search.collection.active.model):
                # No connection is held while a model loads.
                await asyncio.wait({task})
            yield
            # Where nothing fitted nobody has waited for it; a query that is none is refused all the same.
            await asyncio.shield(task)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task

    async def _embed(self, search: Search, query: str) -> Vector | None:
        """The query's vector, where it can be had."""
        active = search.collection.active
        try:
            await self._admission.admit(search.tenant, active)
            embedded = await self._embedder.embed(
                search.tenant, [query], model=active.model, role="query", lane="interactive"
            )
        except Invalid as error:
            raise Invalid.at("/query", error.detail, error.faults[0].code) from None
        except Unavailable:
            # Words still find; only what cannot be answered without the meaning is refused.
            if search.needs_vector or not search.collection.policy.keep_terms:
                raise
            search.degraded = ("model",)
            return None
        vector: Vector = embedded.vectors[0]
        return vector

    async def _look(self, search: Search) -> list[Found]:
        """Hits in their order, as many as are wanted and one more if there is one."""
        async with self._pool.tenant(search.tenant, snapshot=True) as tx:
            question = await self._question(tx, search)
            groups, tree = search.groups, search.tree
            found, exhausted = await self._within(tx, search, question, tree)
            if groups.field is None:
                return found
            # Where what is nearest belongs to few groups, the others are looked for without these.
            while not exhausted and len(groups) <= search.request.wanted and groups.grown():
                tree = without_groups(search.tree, groups.field, groups.values)
                _, exhausted = await self._within(tx, search, question, tree)
            return groups.hits

    async def _within(
        self, tx: Tx, search: Search, question: Question, tree: Filter | None
    ) -> tuple[list[Found], bool]:
        """Hits that fit a filter, and whether there are no others."""
        scoping = self._scopes.of(tx, search.collection, tree, search.indexed)
        scope = await search.step("filter", scoping, _of_scope)
        found: list[Found] = []
        seen: set[int] = set()
        depth = first_depth(search)
        while not scope.empty:
            ranked = await self._rankings.rank(tx, search, question, scope, depth)
            new = [item for item in ranked.order if item[0] not in seen]
            seen.update(content for content, _ in new)
            found += await self._load(tx, search, question, scope, ranked, new, len(found))
            if ranked.exhausted or _enough(search, len(found)):
                return found, ranked.exhausted
            if depth > MOST_HITS and not search.skips:
                return found, False
            depth *= DEEPER
        return found, True

    async def _question(self, tx: Tx, search: Search) -> Question:
        request, collection = search.request, search.collection
        if request.like is None:
            return Question(await _query_terms(request.query or "") if search.by_words else [])
        found = await lookups.pointed(tx, collection.id, request.like)
        if found is None:
            raise NotFound("There is no record of this id.", code="record_not_found")
        record, content = found
        words = await matches.of_content(tx, collection.id, content) if search.by_words else []
        vector = None
        if search.by_meaning or search.needs_vector:
            vector = (await self._store.fetch(tx, collection.active, [content])).get(content)
            if vector is None and search.needs_vector:
                raise Conflict("This record has no vector yet. Try again soon.", code="waiting", retry_after=1)
        shared = await lookups.shared(tx, content, record)
        return Question(words[:MOST_COUNTED_TERMS], record, None if shared else content, vector)

    async def _load(
        self,
        tx: Tx,
        search: Search,
        question: Question,
        scope: Scope,
        ranked: Ranked,
        order: list[tuple[int, float]],
        already: int,
    ) -> list[Found]:
        """The records of contents in their order, until there is one more than wanted."""
        vector = await search.vector(question)
        found: list[Found] = []
        at = 0
        while at < len(order) and not _enough(search, already + len(found)):
            missing = search.request.wanted + 1 - already - len(found)
            part = order[at : at + (CHUNK if search.skips or search.groups.field else missing)]
            at += len(part)
            loading = lookups.of_contents(
                tx,
                search.collection.active.id,
                [content for content, _ in part],
                scope.where,
                most=search.request.wanted + 1,
                without=question.without,
                similar_to=vector,
            )
            rows = await search.step("load", loading, lambda rows: {"records": len(rows)})
            found += _hits(search, ranked, dict(part), rows)
        return found


def _refuse(search: Search) -> None:
    if search.request.mode == "lexical" and not search.collection.policy.keep_terms:
        raise Invalid.at(
            "/mode",
            "This collection keeps no words (policy keep_terms is false); use mode dense.",
            "terms_not_kept",
        )


async def _query_terms(query: str) -> list[int]:
    """A query's distinct terms, the first of a long one."""
    counted = analyze(query) if len(query) < LONG_QUERY else await asyncio.to_thread(analyze, query)
    return list(counted)[:MOST_COUNTED_TERMS]


def _enough(search: Search, found: int) -> bool:
    """Whether there are as many hits as wanted, and one more that tells of a next page."""
    return (len(search.groups) if search.groups.field else found) > search.request.wanted


def _hits(
    search: Search,
    ranked: Ranked,
    scores: dict[int, float],
    rows: list[tuple[lookups.StoredRecord, float | None]],
) -> list[Found]:
    """Those records that are near enough; grouped ones are kept with their groups."""
    least, by_meaning = search.request.threshold, frozenset(ranked.meaning.contents)
    found = []
    for record, similarity in rows:
        if least is not None and (similarity is None or similarity < least):
            continue
        word = ranked.words.get(record.content)
        found_by = (("dense", record.content in by_meaning), ("lexical", word is not None))
        names = tuple(name for name, is_so in found_by if is_so)
        one = Found(scores[record.content], similarity, word, names, record)
        found.append(search.groups.add(one) if search.groups.field else one)
    return found


def _of_scope(scope: Scope) -> dict[str, Any]:
    if scope.everything:
        return {"contents": "all"}
    few = None if scope.among is None else len(scope.among.ids)
    return {"answered_by": scope.source, "matching": few, "share": round(scope.share, 4)}


def _no_facts(_: object) -> dict[str, Any]:
    return {}
