"""The ranking of a search: its legs side by side, and their fusion into one order."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from likewise.db.pool import Pool
from likewise.db.transaction import Tx
from likewise.search import meaning
from likewise.search.candidates import CandidateSet
from likewise.search.explanation import StepTiming
from likewise.search.fusion import ScoredContent, fuse
from likewise.search.legs import LegRanking
from likewise.search.options import MAX_HITS
from likewise.search.plan import SearchPlan
from likewise.search.question import Question
from likewise.search.words import WordRanker
from likewise.stopping import stop
from likewise.vectors.store import VectorStore

# Of so many ids, or under a filter of more, each ranking takes some milliseconds, and a connection a third of one.
SIDE_BY_SIDE = 2_000
# Of so many contents words take longer than it takes to embed a query.
LARGE = 300_000


@dataclass(frozen=True)
class ContentRanking:
    """Contents in the order of their scores, and the score of each by each leg.

    `depth` is how far the legs went; `exhausted`: there are no others; `is_last`: deeper is not looked.
    """

    order: Sequence[ScoredContent] = ()
    similarities: Mapping[int, float] | None = None
    words: Mapping[int, float] | None = None
    depth: int = 0
    exhausted: bool = True
    is_last: bool = True
    timings: tuple[StepTiming, ...] = ()

    def found_by(self, content: int) -> tuple[str, ...]:
        """Return the names of the legs that found a content."""
        legs = (("dense", self.similarities), ("lexical", self.words))
        return tuple(name for name, scores in legs if scores and content in scores)


class Rankings:
    """Ranks the candidates of a search by its legs."""

    def __init__(self, pool: Pool, store: VectorStore) -> None:
        self._pool = pool
        self._store = store
        self._words = WordRanker()

    async def rank(
        self,
        tx: Tx,
        plan: SearchPlan,
        question: Question,
        candidates: CandidateSet,
        before: ContentRanking | None = None,
    ) -> ContentRanking:
        """Return the best of each leg in one order: what a ranking before gave, and deeper than that.

        Words come first: meanwhile the query is embedded.
        """
        if candidates.empty:
            return ContentRanking()
        depth = plan.deeper(before.depth) if before else plan.depth
        words, near = await self._both(tx, plan, question, candidates, depth)
        timings = tuple(leg.timing for leg in (words, near) if leg is not None)
        found = {content for leg in (words, near) if leg is not None for content, _ in leg.scored}
        if words is not None and not words.complete and len(found) <= plan.total:
            # Meaning had little to give, as while vectors are still being made: common words must do.
            words = await self._words.rank(tx, plan, question.terms, candidates, depth, min_found=depth)
            timings += (words.timing,)
        words, near = (None if leg is None else leg.without(question.own) for leg in (words, near))
        exhausted = _exhausted(plan, words, near, depth - (question.own is not None))
        return ContentRanking(
            _merged(before.order if before else (), _order(plan, words, near, depth)),
            None if near is None else dict(near.scored),
            None if words is None else dict(words.scored),
            depth,
            exhausted,
            exhausted or (depth > MAX_HITS and not plan.passes_over),
            timings,
        )

    async def _both(
        self, tx: Tx, plan: SearchPlan, question: Question, candidates: CandidateSet, depth: int
    ) -> tuple[LegRanking | None, LegRanking | None]:
        """Both rankings; what takes long at once, words on a connection of their own.

        What came or went between the two is left out when records are loaded.
        """
        if question.terms and plan.by_meaning and _is_long(plan, candidates):
            async with self._pool.spare(plan.tenant) as other:
                if other is not None:
                    beside = asyncio.ensure_future(self._by_words(other, plan, question, candidates, depth))
                    try:
                        near = await self._by_meaning(tx, plan, question, candidates, depth)
                        return await beside, near
                    finally:
                        await stop([beside])
        words = await self._by_words(tx, plan, question, candidates, depth)
        return words, await self._by_meaning(tx, plan, question, candidates, depth)

    async def _by_words(
        self, tx: Tx, plan: SearchPlan, question: Question, candidates: CandidateSet, depth: int
    ) -> LegRanking | None:
        # Where words alone answer, common ones must do if there are no others.
        min_found = 0 if plan.by_meaning else depth
        if not question.terms:
            return None
        return await self._words.rank(tx, plan, question.terms, candidates, depth, min_found=min_found)

    async def _by_meaning(
        self, tx: Tx, plan: SearchPlan, question: Question, candidates: CandidateSet, depth: int
    ) -> LegRanking | None:
        vector = await question.vector()
        if not plan.by_meaning or vector is None:
            return None
        return await meaning.rank(tx, self._store, plan, vector, candidates, depth)


def _is_long(plan: SearchPlan, candidates: CandidateSet) -> bool:
    """Whether each ranking takes so long that another connection for one of them pays."""
    if candidates.everything:
        return plan.collection.contents_total >= LARGE
    return candidates.among is None or len(candidates.among.ids) >= SIDE_BY_SIDE


def _exhausted(plan: SearchPlan, words: LegRanking | None, near: LegRanking | None, full: int) -> bool:
    """Whether no other content could be a hit; of a full ranking there may be more."""
    threshold = plan.options.threshold
    if threshold is not None and near is not None and near.scored and near.scored[-1][1] < threshold:
        # All others are less alike still.
        return True
    return all(leg is None or (leg.complete and len(leg.scored) < full) for leg in (words, near))


def _order(plan: SearchPlan, words: LegRanking | None, near: LegRanking | None, depth: int) -> Sequence[ScoredContent]:
    by_words = [] if words is None else words.scored
    by_meaning = [] if near is None else near.scored
    if plan.mode == "dense":
        return by_meaning
    if plan.mode == "lexical":
        return by_words
    full = depth - 1 - plan.left_out
    return fuse(by_meaning[:full], by_words[:full], depth=full, background=plan.collection.active.background)


def _merged(before: Sequence[ScoredContent], order: Sequence[ScoredContent]) -> Sequence[ScoredContent]:
    """What a shallower ranking gave, as it was, and what is new after it."""
    seen = {content for content, _ in before}
    return [*before, *(one for one in order if one[0] not in seen)]
