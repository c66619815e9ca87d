"""The ranking of a search: its legs side by side, by meaning and by words, and their fusion into one order."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

from cachetools import LRUCache

from likewise.db import terms
from likewise.db.pool import Pool
from likewise.db.transaction import Tx
from likewise.embedding.provider import Vector
from likewise.search.candidates import CandidateSet
from likewise.search.fusion import fuse
from likewise.search.options import MAX_HITS
from likewise.search.plan import Leg, SearchPlan, StepTiming
from likewise.search.question import Question
from likewise.stopping import stop
from likewise.vectors.store import FilterSubset, Ranking, VectorStore

# Of the terms that are counted so many are ranked, the rarest: each costs time, and the hundredth changes nothing.
MAX_RANKED_TERMS = 64
REMEMBERED_SECONDS = 60.0
# Counts that are remembered, of all views together: about 10 MB.
MAX_REMEMBERED = 100_000
# Counting visits each content, 0.4 us each: of more the statistics of the table tell, to 20 % and mostly to 5 %, which
# moves the rarity of so common a term by 2 %.
MAX_COUNTED = 1_000
# What visiting a vector costs, in microseconds, on the way through an index with a question to its record, by its id,
# and what finding out one of the ids costs.
BY_INDEX_US, BY_ID_US, AN_ID_US = 12.0, 1.1, 0.2
# So many more are visited than it takes where a filter has nothing to do with the meaning. For a hundred of a tenth
# that is two and a half standard deviations: 1 search of 100 needs more.
MORE_THAN_BY_CHANCE = 1.25
# Of so many ids, or under a filter of more, each ranking takes some milliseconds, and a connection a third of one.
SIDE_BY_SIDE = 2_000
# Of so many contents words take longer than it takes to embed a query.
LARGE = 300_000
# What hits say of the leg that found them.
FOUND_BY = {"meaning": "dense", "words": "lexical"}


@dataclass(frozen=True)
class LegRanking:
    """Contents and their scores by one leg, best first; `complete`: all that match were ranked."""

    leg: Leg
    scores: Mapping[int, float] = field(default_factory=dict)
    complete: bool = True
    timings: tuple[StepTiming, ...] = ()

    def without(self, content: int | None) -> "LegRanking":
        """Return the ranking with one content left out."""
        if content not in self.scores:
            return self
        return replace(self, scores={one: score for one, score in self.scores.items() if one != content})


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
        return tuple([FOUND_BY[one.leg.by] for one in self.legs if content in one.scores])

    def lexical_score(self, content: int) -> float | None:
        """Return the score of a content by words, None where they did not find it."""
        for one in self.legs:
            if one.leg.by == "words":
                return one.scores.get(content)
        return None


# Before the legs have gone anywhere.
NOT_RANKED = ContentRanking({}, exhausted=False, is_last=False)


@dataclass(frozen=True)
class ViewSearch:
    """The search of one view: candidates for a question, and how far they are ranked."""

    plan: SearchPlan
    question: Question
    candidates: CandidateSet
    ranking: ContentRanking = NOT_RANKED


@dataclass
class _Counts:
    """The counts of one view's terms; `has_common`: its commonest are among them. `began` by `time.monotonic`."""

    terms: dict[int, int] = field(default_factory=dict)
    has_common: bool = False
    began: float = field(default_factory=time.monotonic)

    @property
    def size(self) -> int:
        """The room that it takes; without terms too, or it would never leave."""
        return 1 + len(self.terms)

    @property
    def is_old(self) -> bool:
        """True if they are to be counted anew."""
        return time.monotonic() - self.began >= REMEMBERED_SECONDS


class TermFrequencies:
    """In how many contents a term occurs, remembered for a minute.

    Counts are from the index, those of common terms from the statistics of the table once it has any.
    """

    def __init__(self) -> None:
        # One entry a view: a look into the cache for each term of a question would cost more than all the rest.
        self._counts: LRUCache[tuple[int, int], _Counts] = LRUCache(MAX_REMEMBERED, getsizeof=attrgetter("size"))

    async def of(self, tx: Tx, plan: SearchPlan, wanted: Sequence[int]) -> dict[int, int]:
        """Return the number of contents that have each term."""
        collection, view, total = plan.collection.id, plan.view.number, plan.view.contents_total
        counts = self._counts.get((collection, view))
        if counts is None or counts.is_old:
            # Put at once: searches that come together count for each other.
            counts = self._counts[collection, view] = _Counts()
        known = counts.terms
        if all(term in known for term in wanted):
            return {term: known[term] for term in wanted}
        # Where all are counted fast, nobody asks for the commonest.
        if not counts.has_common and total > MAX_COUNTED:
            shares = await terms.commonest(tx, collection, view=view)
            common = {term: round(share * total) for term, share in shares.items()}
            known.update((term, n) for term, n in common.items() if n > MAX_COUNTED and term not in known)
            counts.has_common = True
        missing = [term for term in wanted if term not in known]
        if missing:
            known.update(await terms.count(tx, collection, missing, view=view))
        # Its size is taken when it is put.
        self._counts.pop((collection, view), None)
        if counts.size <= MAX_REMEMBERED:
            self._counts[collection, view] = counts
        return {term: known[term] for term in wanted}


class Rankings:
    """Ranks the candidates of a search by its legs."""

    def __init__(self, pool: Pool, store: VectorStore) -> None:
        self._pool = pool
        self._store = store
        self._frequencies = TermFrequencies()

    async def deeper(self, tx: Tx, search: ViewSearch) -> ViewSearch:
        """Return the search with the best of each leg in one order: as it was before, and then what is deeper."""
        plan, before = search.plan, search.ranking
        if search.candidates.empty:
            return replace(search, ranking=ContentRanking({}))
        depth = plan.deeper(before.depth)
        legs = await self._side_by_side(tx, search, depth)
        found = {content for one in legs for content in one.scores}
        if len(found) <= plan.total and any(not one.complete for one in legs):
            # Meaning had little to give, as while vectors are still being made: common words must do.
            legs = [await self._completed(tx, search, one, depth) for one in legs]
        own = search.question.own
        legs = [one.without(own) for one in legs]
        exhausted = _exhausted(plan, legs, depth - (own is not None))
        is_last = exhausted or (depth > MAX_HITS and not plan.passes_over)
        fused = _fused(plan, legs, depth)
        # What was ranked before keeps its place and its score: pages that follow each other do not overlap.
        order = {**before.scores, **{one: score for one, score in fused if one not in before.scores}}
        return replace(search, ranking=ContentRanking(order, legs, depth, exhausted, is_last))

    async def _side_by_side(self, tx: Tx, search: ViewSearch, depth: int) -> list[LegRanking]:
        """All legs; of what takes long the first is ranked meanwhile, words on a connection of their own.

        What came or went between the two is left out when records are loaded.
        """

        async def ranked(on: Tx, legs: Sequence[Leg]) -> list[LegRanking]:
            # Words come first: meanwhile the query is embedded.
            last_first = [await self._rank(on, search, leg, depth) for leg in reversed(legs)]
            return last_first[::-1]

        plan = search.plan
        first, others = plan.legs[:1], plan.legs[1:]
        if search.question.terms and others and _is_long(plan, search.candidates):
            async with self._pool.spare(plan.tenant) as spare:
                if spare is not None:
                    beside = asyncio.ensure_future(ranked(spare, others))
                    try:
                        return [*await ranked(tx, first), *await beside]
                    finally:
                        await stop([beside])
        return await ranked(tx, plan.legs)

    async def _completed(self, tx: Tx, search: ViewSearch, found: LegRanking, depth: int) -> LegRanking:
        if found.complete:
            return found
        again = await self._by_words(tx, search, found.leg, depth, depth)
        return replace(again, timings=(*found.timings, *again.timings))

    async def _rank(self, tx: Tx, search: ViewSearch, leg: Leg, depth: int) -> LegRanking:
        """Return the best `depth` candidates by one leg; none where the question has no words, or no vector."""
        if leg.by == "words":
            # Where words alone answer, common ones must do if there are no others.
            return await self._by_words(tx, search, leg, depth, 0 if search.plan.by_meaning else depth)
        vector = await search.question.vector()
        if vector is None:
            return LegRanking(leg)
        started = time.perf_counter()
        found = await self._nearest(tx, search.plan, vector, search.candidates, depth)
        timing = StepTiming.since(started, "meaning", plan=found.plan, found=len(found))
        return LegRanking(leg, dict(zip(found.contents, found.similarities, strict=True)), timings=(timing,))

    async def _by_words(self, tx: Tx, search: ViewSearch, leg: Leg, depth: int, min_found: int) -> LegRanking:
        """Return the best `depth` by BM25 over the rarest terms; common ones must do where fewer would be found."""
        if not search.question.terms:
            return LegRanking(leg)
        started, plan, candidates = time.perf_counter(), search.plan, search.candidates
        counted = await self._frequencies.of(tx, plan, search.question.terms)
        rare = dict(sorted(counted.items(), key=lambda item: (item[1], item[0]))[:MAX_RANKED_TERMS])
        among = candidates.among.ids if candidates.among else candidates.where
        found = await terms.rank(
            tx,
            plan.collection.id,
            rare,
            plan.view.contents_total,
            depth,
            view=plan.view.number,
            min_found=min_found,
            among=None if candidates.everything else among,
            share=candidates.share,
        )
        chosen = found.candidates
        facts = {"terms": len(chosen.terms), "conjunctions": len(chosen.conjunctions)}
        facts |= {"every_match_ranked": chosen.complete, "found": len(found.scored)}
        return LegRanking(leg, dict(found.scored), chosen.complete, (StepTiming.since(started, "words", **facts),))

    async def _nearest(self, tx: Tx, plan: SearchPlan, query: Vector, candidates: CandidateSet, depth: int) -> Ranking:
        """The nearest of the candidates, by whichever way costs least and finds them."""
        generation, total = plan.generation, plan.view.contents_total
        if candidates.everything or candidates.among is not None:
            return await self._store.search(tx, generation, query, depth, candidates.among, total=total)
        share = max(candidates.share, 1e-6)
        visits = round(MORE_THAN_BY_CHANCE * depth / share)
        if visits * BY_INDEX_US < share * max(1, total) * (BY_ID_US + AN_ID_US):
            fitting = FilterSubset(candidates.where, share, visits)
            found = await self._store.search(tx, generation, query, depth, fitting, total=total)
            # Those near the query may fit far less often than others do (one asset, one service). What an index gives
            # so far from the query is not the nearest any more: of a million it found 0.18 of them.
            if len(found) >= depth:
                return found
        return await self._store.search(tx, generation, query, depth, await candidates.all_ids(tx), total=total)


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
