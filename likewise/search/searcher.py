"""Searcher, the conductor: a question in, hits out."""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from likewise.db.collections import CollectionRow, RecentCollections
from likewise.db.pool import Pool, retried
from likewise.embedding.embedder import Embedder
from likewise.errors import NotFound
from likewise.kind import Kinds
from likewise.observe.steps import SearchStep
from likewise.sealing import Sealing
from likewise.search.candidates import CandidateSets
from likewise.search.hits import HitPage, SearchOutcome, first_page
from likewise.search.options import MAX_HITS, SearchRequest
from likewise.search.plan import SearchPlan, StepTiming, explain, plan_search
from likewise.search.question import Embedding, QuestionResolver
from likewise.search.ranking import Rankings, ViewSearch
from likewise.search.reranking import Rerankers, rerank_hits
from likewise.search.views import ViewFusion
from likewise.vectors.admission import Admission
from likewise.vectors.store import VectorStore


class Searcher:
    """Finds records by words, by meaning, or by both."""

    def __init__(
        self,
        pool: Pool,
        embedder: Embedder,
        admission: Admission,
        store: VectorStore,
        recent: RecentCollections,
        reranking: Rerankers,
        sealing: Sealing,
        kinds: Kinds,
    ) -> None:
        self._pool = pool
        self._recent = recent
        self._kinds = kinds
        self._questions = QuestionResolver(embedder, admission, store, sealing)
        self._candidates = CandidateSets()
        self._rankings = Rankings(pool, store)
        self._views = ViewFusion(self._questions, self._candidates, self._rankings)
        self._reranking = reranking

    async def search(self, tenant: int, name: str, request: SearchRequest) -> SearchOutcome:
        """Return the best hits for a request. If as many match as were asked for, that many come back.

        Raises:
            NotFound: the collection, or the record in question.
            UnknownKind: the app of the collection is not there.
            Invalid: a wrong filter, or words or texts asked for where none are kept.
            ModelUnavailable: meaning was asked for (mode `dense`, or a threshold) and the model is away; or `rerank`
                was, and the reranker is.
        """
        started = time.perf_counter()

        async def answer(collection: CollectionRow) -> SearchOutcome:
            plan = plan_search(tenant, collection, self._kinds.of(collection.kind), request)
            return await self._answer(plan, started)

        with SearchStep(request.options.mode) as step:
            return step.done(await self._as_it_is(tenant, name, answer))

    async def _as_it_is(
        self, tenant: int, name: str, answer: Callable[[CollectionRow], Awaitable[SearchOutcome]]
    ) -> SearchOutcome:
        """Search a collection as it was a moment ago; as it is now, if nothing is found and it is another by now."""
        before = await self._recent.get(tenant, name)
        found: SearchOutcome | NotFound
        try:
            found = await answer(before)
        except NotFound as error:
            found = error
        if isinstance(found, SearchOutcome) and found.hits:
            return found
        # It may have been dropped, and made anew; or its generation was retired and another answers.
        self._recent.forget(tenant, name)
        now = await self._recent.get(tenant, name)
        if (now.id, now.active.id) != (before.id, before.active.id):
            return await answer(now)
        if isinstance(found, NotFound):
            raise found
        return found

    async def _answer(self, plan: SearchPlan, started: float) -> SearchOutcome:
        """Embed the question beside the search, find a page of hits, and have it reranked if that was asked for."""
        if plan.options.rerank:
            # Before anything is looked for: where there is none, nothing will do.
            self._reranking.known()
        async with self._questions.embeddings(plan) as embeddings:
            # Whoever drops the collection waits for its readers, and may be waited for by one.
            page, timings = await retried(lambda: self._find(plan, embeddings))
        for embedded in [embedding.result() for embedding in embeddings if embedding is not None]:
            if embedded.degraded:
                page = replace(page, degraded=tuple(dict.fromkeys((*embedded.degraded, *page.degraded))))
            timings = [embedded.timing, *timings]
        hits, more = page.hits[: plan.page_size], len(page.hits) > plan.page_size and plan.total < MAX_HITS
        if plan.options.rerank:
            # One page: what lies behind the first hits has no score that could be compared with theirs.
            reranked = await rerank_hits(self._reranking, plan, page)
            hits, more, timings = reranked.hits[: plan.options.limit], False, [*timings, *reranked.timings]
        explanation = explain(timings) if plan.options.explain else None
        took_ms = (time.perf_counter() - started) * 1000
        return SearchOutcome(hits, plan.model, took_ms, page.degraded, more, explanation)

    async def _find(self, plan: SearchPlan, embeddings: Sequence[Embedding | None]) -> tuple[HitPage, list[StepTiming]]:
        """Rank the candidates, ever deeper, until there are enough hits or no others."""
        async with self._pool.tenant(plan.tenant, snapshot=True) as tx:
            if plan.others:
                return await self._views.find(tx, plan, embeddings)
            question = await self._questions.resolve(tx, plan, embeddings[0])
            page, search, timings = first_page(plan, question), None, list[StepTiming]()
            while not page.done:
                if search is None or search.ranking.is_last:
                    search = ViewSearch(plan, question, await self._candidates.of(tx, plan, page.tree))
                    timings.append(search.candidates.timing)
                search = await self._rankings.deeper(tx, search)
                page = await page.filled(tx, search.ranking)
                timings += [*search.ranking.timings, *page.timings]
            return page, timings
