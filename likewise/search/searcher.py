"""Searcher, the conductor: a question in, hits out."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from likewise import filters
from likewise.db import lookups, matches
from likewise.db.collections import CollectionRow, RecentCollections
from likewise.db.pool import Pool, retried
from likewise.db.transaction import Tx
from likewise.db.where import exactly
from likewise.embedding.embedder import Embedder
from likewise.embedding.provider import Vector
from likewise.errors import Conflict, Invalid, NotFound, Unavailable
from likewise.filters import Field, Filter, both
from likewise.kind import Kind
from likewise.observe.steps import SearchStep
from likewise.sealing import Sealing
from likewise.search.analyzer import analyze
from likewise.search.candidates import Scope, Scopes
from likewise.search.grouping import Groups, group_field, without_groups
from likewise.search.options import MOST_HITS, Found, SearchRequest, SearchResult
from likewise.search.ranking import MOST_COUNTED_TERMS, Ranked, Rankings, first_depth
from likewise.search.reranking import Reranked, Reranking
from likewise.search.state import Question, Search
from likewise.stopping import stop
from likewise.vectors.admission import Admission
from likewise.vectors.store import VectorStore

# How much deeper the rankings go each time that too few of theirs can be answered.
DEEPER = 10
# Longer queries are analysed beside the event loop.
LONG_QUERY = 10_000
# Contents whose records are looked at in one statement where not all of them may be answered.
CHUNK, GROUP_CHUNK = 1_000, 200
# So long groups are looked for that lie beyond what is nearest; then the answer says that there may be others.
GROUPS_SECONDS = 10.0
# Who searches has not chosen these texts.
CANNOT_SCORE = "The reranker cannot score the texts that were found; search without rerank."

Scored = tuple[int, float]


class Searcher:
    """Finds records by words, by meaning, or by both."""

    def __init__(
        self,
        pool: Pool,
        embedder: Embedder,
        admission: Admission,
        store: VectorStore,
        recent: RecentCollections,
        reranking: Reranking,
        sealing: Sealing,
    ) -> None:
        self._pool = pool
        self._embedder = embedder
        self._admission = admission
        self._store = store
        self._rankings = Rankings(pool, store)
        self._scopes = Scopes()
        self._recent = recent
        self._reranking = reranking
        self._sealing = sealing

    async def search(self, tenant: int, name: str, kind: Kind, request: SearchRequest) -> SearchResult:
        """The best hits for a request. If as many records match as were asked for, that many come back.

        Raises:
            NotFound: the collection, or the record named by `like`.
            Invalid: a wrong filter, or words or texts asked for where none are kept.
            ModelUnavailable: meaning was asked for (mode `dense`, or a threshold) and the model is away; or `rerank`
                was, and the reranker is.
        """
        with SearchStep(request.mode) as step:
            return step.done(await self._timed(tenant, name, kind, request))

    async def _timed(self, tenant: int, name: str, kind: Kind, request: SearchRequest) -> SearchResult:
        started = time.perf_counter()
        tree = both(request.must, filters.parse(request.filters, kind.aliases, kind.within))
        grouped = group_field(request.group_by, kind.aliases, kind.within)

        async def within(collection: CollectionRow) -> SearchResult:
            return await self._search(Search(tenant, collection, kind, request, tree, grouped))

        found = await self._as_it_is(tenant, name, within)
        return replace(found, took_ms=(time.perf_counter() - started) * 1000)

    async def _as_it_is(
        self, tenant: int, name: str, within: Callable[[CollectionRow], Awaitable[SearchResult]]
    ) -> SearchResult:
        """Search a collection as it was a moment ago; as it is now, if nothing is found and it is another by now."""
        before = await self._recent.get(tenant, name)
        found: SearchResult | NotFound
        try:
            found = await within(before)
        except NotFound as error:
            found = error
        if isinstance(found, SearchResult) and found.hits:
            return found
        # It may have been dropped, and made anew; or its generation was retired and another answers.
        self._recent.forget(tenant, name)
        now = await self._recent.get(tenant, name)
        if (now.id, now.active.id) != (before.id, before.active.id):
            return await within(now)
        if isinstance(found, NotFound):
            raise found
        return found

    async def _search(self, search: Search) -> SearchResult:
        request = search.request
        _refuse(search)
        if request.rerank:
            # Before anything is looked for: where there is none, nothing will do.
            self._reranking.known()
        async with self._embedding(search):
            # Whoever drops the collection waits for its readers, and may be waited for by one.
            hits = await retried(lambda: self._look(search))
        asked = request.wanted - request.offset
        page, more = hits[:asked], len(hits) > asked and request.wanted < MOST_HITS
        if request.rerank:
            # One page: what lies behind the first hits has no score that could be compared with theirs.
            page, more = (await self._reranked(search, page))[: request.limit], False
        explanation = search.steps if request.explain else None
        return SearchResult(page, search.collection.active.model, 0.0, search.degraded, more, explanation)

    async def _reranked(self, search: Search, hits: Sequence[Found]) -> list[Found]:
        """The hits in the order of the reranker's scores; those of equal ones as they were.

        No connection is held meanwhile. Records that share a text share its score.
        """
        texts = {hit.record.content: hit.record.text for hit in hits}
        known = {content: text for content, text in texts.items() if text is not None}
        if search.asked is None or len(known) < len(texts):
            raise _no_text()
        if not hits:
            return []
        scoring = self._score(search, search.asked, list(known.values()))
        made = await search.step("rerank", scoring, lambda done: {"texts": len(done.scores), "model": done.model})
        scores = dict(zip(known, made.scores.tolist(), strict=True))
        found = [replace(hit, score=scores[hit.record.content]) for hit in hits]
        return sorted(found, key=lambda hit: -hit.score)

    async def _score(self, search: Search, asked: str, texts: Sequence[str]) -> Reranked:
        try:
            return await self._reranking.rerank(search.tenant, asked, texts)
        except Invalid as error:
            # The places that it names are those of hits, which the caller does not know of.
            code = error.faults[0].code
            words = CANNOT_SCORE if code == "text_failed" else error.detail
            raise Invalid.at("/rerank", words, code) from None

    @contextlib.asynccontextmanager
    async def _embedding(self, search: Search) -> AsyncIterator[None]:
        """Have the query embedded while its filter and its words are looked at."""
        if search.request.query is None or not (search.by_meaning or search.needs_vector):
            yield
            return
        task = asyncio.create_task(self._embedded(search, search.request.query))
        search.embedding = task
        try:
            if not self._embedder.is_ready(search.collection.active.model):
                # No connection is held while a model loads.
                await asyncio.wait({task})
            yield
            # Where nothing fitted nobody has waited for it; a query that is none is refused all the same.
            await asyncio.shield(task)
        finally:
            await stop([task])

    async def _embedded(self, search: Search, query: str) -> Vector | None:
        return await search.step("embed", self._embed(search, query), _no_facts)

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
        """Hits in their order from the page's first, as many as it may have and one more if there is one."""
        async with self._pool.tenant(search.tenant, snapshot=True) as tx:
            question = await self._question(tx, search)
            if search.group_by is None:
                return await self._ungrouped(tx, search, question)
            return (await self._grouped(tx, search, question, search.group_by))[search.request.offset :]

    async def _ungrouped(self, tx: Tx, search: Search, question: Question) -> list[Found]:
        request = search.request
        found: list[Found] = []
        async for ranked, order, is_last in self._ever_deeper(tx, search, question, search.tree):
            if len(order) <= request.wanted and not is_last:
                continue
            wanted = _wanted(search, question, await search.vector(question))
            if search.skips:
                found = (await self._first(tx, search, ranked, order, wanted))[request.offset :]
            else:
                # Mostly nothing comes after it; what does looks at everything anew.
                found = await self._load(tx, search, ranked, order, wanted, commit=True)
            if len(found) > request.wanted - request.offset:
                break
        return found

    async def _first(
        self, tx: Tx, search: Search, ranked: Ranked, order: Sequence[Scored], wanted: lookups.RecordQuery
    ) -> list[Found]:
        """The first records, where any number of contents may have none that is near enough."""
        found: list[Found] = []
        for at in range(0, len(order), CHUNK):
            missing = search.request.wanted + 1 - len(found)
            if missing == 0:
                break
            wanted = replace(wanted, offset=0, limit=missing)
            found += await self._load(tx, search, ranked, order[at : at + CHUNK], wanted)
        return found

    async def _grouped(self, tx: Tx, search: Search, question: Question, field: Field) -> list[Found]:
        """The best hit of each group, in their order."""
        groups, tree = Groups(field), search.tree
        started = time.monotonic()
        while True:
            all_seen = await self._fill(tx, search, question, tree, groups)
            if all_seen or len(groups) > search.request.wanted or not groups.grown():
                return groups.hits
            if time.monotonic() - started > GROUPS_SECONDS:
                search.degraded = (*search.degraded, "groups")
                return groups.hits
            # Where what is nearest belongs to few groups, the others are looked for without these.
            tree = without_groups(search.tree, field, groups.values)

    async def _fill(self, tx: Tx, search: Search, question: Question, tree: Filter | None, groups: Groups) -> bool:
        """Take the groups of what fits a filter, until there are enough; returns whether there are no others."""
        at = 0
        async for ranked, order, _ in self._ever_deeper(tx, search, question, tree):
            wanted = replace(_wanted(search, question, await search.vector(question)), offset=0, limit=None)
            for start in range(at, len(order), GROUP_CHUNK):
                for hit in await self._load(tx, search, ranked, order[start : start + GROUP_CHUNK], wanted):
                    groups.add(hit)
                if len(groups) > search.request.wanted:
                    return False
            at = len(order)
            if ranked.exhausted:
                return True
        # Nothing fits at all, or more than was looked at.
        return at == 0

    async def _ever_deeper(
        self, tx: Tx, search: Search, question: Question, tree: Filter | None
    ) -> AsyncIterator[tuple[Ranked, list[Scored], bool]]:
        """The contents that fit a filter in their order, further each time, and whether this was the last time."""
        scoping = self._scopes.of(tx, search.collection, tree, search.indexed)
        scope = await search.step("filter", scoping, _of_scope)
        order: list[Scored] = []
        seen: set[int] = set()
        depth = first_depth(search)
        while not scope.empty:
            ranked = await self._rankings.rank(tx, search, question, scope, depth)
            order += [item for item in ranked.order if item[0] not in seen]
            seen.update(content for content, _ in ranked.order)
            is_last = ranked.exhausted or (depth > MOST_HITS and not search.skips)
            yield ranked, order, is_last
            if is_last:
                return
            depth *= DEEPER
            if search.skips:
                # By words alone a threshold may pass over any number: all are looked at, however old their count is.
                depth = max(depth, search.collection.contents_total + 2)

    async def _question(self, tx: Tx, search: Search) -> Question:
        request, collection = search.request, search.collection
        if request.like is None:
            search.asked = request.query
            key = collection.terms_key(self._sealing)
            return Question(await _query_terms(request.query or "", key) if search.by_words else [])
        found = await lookups.pointed(tx, collection.id, request.like)
        if found is None:
            raise NotFound("There is no record of this id.", code="record_not_found")
        record, content = found
        if request.rerank:
            liked = await lookups.one(tx, collection.id, collection.active.id, request.like)
            search.asked = liked.text if liked else None
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
        ranked: Ranked,
        order: Sequence[Scored],
        wanted: lookups.RecordQuery,
        *,
        commit: bool = False,
    ) -> list[Found]:
        """The records of contents, in their order; with `commit` the transaction ends in the same round trip."""
        scores = dict(order)
        where = exactly(search.tree, search.collection.id)
        loading = lookups.of_contents(tx, search.collection.active.id, list(scores), where, wanted, commit=commit)
        rows = await search.step("load", loading, lambda rows: {"records": len(rows)})
        return [_hit(ranked, scores, record, similarity) for record, similarity in rows]


def _wanted(search: Search, question: Question, vector: Vector | None) -> lookups.RecordQuery:
    """The page's records and one more, which tells of the next."""
    request = search.request
    return lookups.RecordQuery(
        limit=request.wanted + 1 - request.offset,
        offset=request.offset,
        without=question.without,
        similar_to=vector,
        min_similarity=request.threshold,
        one_of_each=search.group_by,
    )


def _refuse(search: Search) -> None:
    if search.request.rerank and search.request.offset:
        raise Invalid.at("/cursor", "What is reranked has one page; ask for a larger limit.", "rerank_one_page")
    if search.request.rerank and not search.collection.policy.keep_text:
        raise _no_text()
    if search.request.mode == "lexical" and not search.collection.policy.keep_terms:
        raise Invalid.at(
            "/mode",
            "This collection keeps no words (policy keep_terms is false); use mode dense.",
            "terms_not_kept",
        )


def _no_text() -> Invalid:
    return Invalid.at(
        "/rerank",
        "A reranker reads texts, and this collection keeps none (policy keep_text is false); search without rerank.",
        "rerank_needs_text",
    )


async def _query_terms(query: str, key: bytes | None) -> list[int]:
    """A query's distinct terms, the first of a long one."""
    counted = analyze(query, key) if len(query) < LONG_QUERY else await asyncio.to_thread(analyze, query, key)
    return list(counted)[:MOST_COUNTED_TERMS]


def _hit(ranked: Ranked, scores: Mapping[int, float], record: lookups.StoredRecord, similarity: float | None) -> Found:
    word = ranked.words.get(record.content)
    found_by = (("dense", record.content in ranked.by_meaning), ("lexical", word is not None))
    names = tuple(name for name, is_so in found_by if is_so)
    return Found(scores[record.content], similarity, word, names, record)


def _of_scope(scope: Scope) -> dict[str, Any]:
    if scope.everything:
        return {"contents": "all"}
    few = None if scope.among is None else len(scope.among.ids)
    return {"answered_by": scope.source, "matching": few, "share": round(scope.share, 4)}


def _no_facts(_: object) -> dict[str, Any]:
    return {}
