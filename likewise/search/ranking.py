"""The ranking of a search: its legs side by side, and their fusion into one order."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from likewise.db.pool import Pool
from likewise.db.transaction import Tx
from likewise.search.candidates import CandidateSet
from likewise.search.explanation import StepTiming
from likewise.search.fusion import fuse
from likewise.search.legs import LegRanking, Legs
from likewise.search.options import MAX_HITS
from likewise.search.plan import Leg, SearchPlan
from likewise.search.question import Question
from likewise.stopping import stop
from likewise.vectors.store import VectorStore

# Of so many ids, or under a filter of more, each ranking takes some milliseconds, and a connection a third of one.
SIDE_BY_SIDE = 2_000
# Of so many contents words take longer than it takes to embed a query.
LARGE = 300_000
# What hits say of the leg that found them.
FOUND_BY = {"meaning": "dense", "words": "lexical"}


@dataclass(frozen=True)
class ContentRanking:
    """Contents with their scores in one order, and what each leg made of them.

    `depth` is how far the legs went; `exhausted`: there are no others; `is_last`: deeper is not looked.
    """

    scores: Mapping[int, float]
    legs: Sequence[LegRanking] = ()
    depth: int = 0
    exhausted: bool = True
    is_last: bool = True

    @property
    def timings(self) -> list[StepTiming]:
        """The timings of the legs."""
        return [timing for leg in self.legs for timing in leg.timings]

    def found_by(self, content: int) -> tuple[str, ...]:
        """Return the names of the legs that found a content."""
        return tuple(FOUND_BY[one.leg.by] for one in self.legs if content in one.scores)

    def lexical_score(self, content: int) -> float | None:
        """Return the score of a content by words, None where they did not find it."""
        return next((one.scores.get(content) for one in self.legs if one.leg.by == "words"), None)


class Rankings:
    """Ranks the candidates of a search by its legs."""

    def __init__(self, pool: Pool, store: VectorStore) -> None:
        self._pool = pool
        self._legs = Legs(store)

    async def rank(
        self,
        tx: Tx,
        plan: SearchPlan,
        question: Question,
        candidates: CandidateSet,
        before: ContentRanking | None = None,
    ) -> ContentRanking:
        """Return the best of each leg in one order: as a ranking before gave it, and then what is deeper."""
        if candidates.empty:
            return ContentRanking({})
        depth = plan.deeper(before.depth if before else 0)
        legs = await self._side_by_side(tx, plan, question, candidates, depth)
        found = {content for one in legs for content in one.scores}
        if len(found) <= plan.total and any(not one.complete for one in legs):
            # Meaning had little to give, as while vectors are still being made: common words must do.
            legs = [await self._completed(tx, plan, one, question, candidates, depth) for one in legs]
        legs = [one.without(question.own) for one in legs]
        exhausted = _exhausted(plan, legs, depth - (question.own is not None))
        is_last = exhausted or (depth > MAX_HITS and not plan.passes_over)
        order = {**before.scores} if before else {}
        for content, score in _fused(plan, legs, depth):
            order.setdefault(content, score)
        return ContentRanking(order, legs, depth, exhausted, is_last)

    async def _side_by_side(
        self, tx: Tx, plan: SearchPlan, question: Question, candidates: CandidateSet, depth: int
    ) -> list[LegRanking]:
        """All legs; of what takes long the first is ranked meanwhile, words on a connection of their own.

        What came or went between the two is left out when records are loaded.
        """

        async def ranked(on: Tx, legs: Sequence[Leg]) -> list[LegRanking]:
            # Words come first: meanwhile the query is embedded.
            last_first = [await self._legs.rank(on, plan, leg, question, candidates, depth) for leg in reversed(legs)]
            return last_first[::-1]

        first, others = plan.legs[:1], plan.legs[1:]
        if question.terms and others and _is_long(plan, candidates):
            async with self._pool.spare(plan.tenant) as spare:
                if spare is not None:
                    beside = asyncio.ensure_future(ranked(spare, others))
                    try:
                        return [*await ranked(tx, first), *await beside]
                    finally:
                        await stop([beside])
        return await ranked(tx, plan.legs)

    async def _completed(
        self, tx: Tx, plan: SearchPlan, found: LegRanking, question: Question, candidates: CandidateSet, depth: int
    ) -> LegRanking:
        if found.complete:
            return found
        again = await self._legs.by_words(tx, plan, found.leg, question.terms, candidates, depth, depth)
        return LegRanking(again.leg, again.scores, again.complete, (*found.timings, *again.timings))


def _is_long(plan: SearchPlan, candidates: CandidateSet) -> bool:
    """True if each ranking takes so long that another connection for one of them pays."""
    if candidates.everything:
        return plan.view.contents_total >= LARGE
    return candidates.among is None or len(candidates.among.ids) >= SIDE_BY_SIDE


def _exhausted(plan: SearchPlan, legs: Sequence[LegRanking], full: int) -> bool:
    """True if no other content could be a hit; of a full ranking there may be more."""
    threshold = plan.options.threshold
    near = next((list(one.scores.values()) for one in legs if one.leg.by == "meaning"), [])
    if threshold is not None and near and near[-1] < threshold:
        # All others are less alike still.
        return True
    return all(one.complete and len(one.scores) < full for one in legs)


def _fused(plan: SearchPlan, legs: Sequence[LegRanking], depth: int) -> Sequence[tuple[int, float]]:
    by = {one.leg.by: list(one.scores.items()) for one in legs}
    if plan.mode != "hybrid":
        return by["meaning" if plan.mode == "dense" else "words"]
    full, background = depth - plan.margin, plan.generation.background
    return fuse(by["meaning"][:full], by.get("words", [])[:full], depth=full, background=background)
