"""The legs of a search: contents ranked by the words of a question, or by its meaning."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cachetools import TTLCache

from likewise.db import matches
from likewise.db.transaction import Tx
from likewise.embedding.provider import Vector
from likewise.search.candidates import CandidateSet
from likewise.search.explanation import StepTiming
from likewise.search.plan import Leg, SearchPlan
from likewise.search.question import Question
from likewise.vectors.store import FilterSubset, Ranking, VectorStore

# Of the terms that are counted so many are ranked, the rarest: each costs time, and the hundredth changes nothing.
MAX_RANKED_TERMS = 64
REMEMBERED_SECONDS = 60.0
# Views whose counts are remembered, and terms of each.
MAX_REMEMBERED, MAX_TERMS = 500, 1_000
# Counting visits each content, 0.4 us each: of more the statistics of the table tell, to 20 % and mostly to 5 %, which
# moves the rarity of so common a term by 2 %.
MAX_COUNTED = 1_000
# What visiting a vector costs, in microseconds, on the way through an index with a question to its record, by its id,
# and what finding out one of the ids costs.
BY_INDEX_US, BY_ID_US, AN_ID_US = 12.0, 1.1, 0.2
# So many more are visited than it takes where a filter has nothing to do with the meaning. For a hundred of a tenth
# that is two and a half standard deviations: 1 search of 100 needs more.
MORE_THAN_BY_CHANCE = 1.25


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


class Legs:
    """Ranks the candidates of a search by one leg."""

    def __init__(self, store: VectorStore) -> None:
        self._store = store
        self._frequencies = TermFrequencies()

    async def rank(
        self, tx: Tx, plan: SearchPlan, leg: Leg, question: Question, candidates: CandidateSet, depth: int
    ) -> LegRanking:
        """Return the best `depth` candidates by one leg; none where the question has no words, or no vector."""
        if leg.by == "words":
            # Where words alone answer, common ones must do if there are no others.
            min_found = 0 if plan.by_meaning else depth
            return await self.by_words(tx, plan, leg, question.terms, candidates, depth, min_found)
        vector = await question.vector()
        if vector is None:
            return LegRanking(leg)
        started = time.perf_counter()
        found = await self._nearest(tx, plan, vector, candidates, depth)
        timing = StepTiming.since(started, "meaning", plan=found.plan, found=len(found))
        return LegRanking(leg, dict(zip(found.contents, found.similarities, strict=True)), timings=(timing,))

    async def by_words(
        self,
        tx: Tx,
        plan: SearchPlan,
        leg: Leg,
        terms: Sequence[int],
        candidates: CandidateSet,
        depth: int,
        min_found: int,
    ) -> LegRanking:
        """Return the best `depth` by BM25 over the rarest terms; common ones must do where fewer would be found."""
        if not terms:
            return LegRanking(leg)
        started, view = time.perf_counter(), plan.view
        counted = await self._frequencies.of(tx, plan, terms)
        rare = dict(sorted(counted.items(), key=lambda item: (item[1], item[0]))[:MAX_RANKED_TERMS])
        among = candidates.among.ids if candidates.among else candidates.where
        found = await matches.rank(
            tx,
            plan.collection.id,
            rare,
            view.contents_total,
            depth,
            view=view.number,
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


@dataclass
class _Counts:
    """The counts of one view: of terms, and the shares of its commonest."""

    terms: dict[int, int] = field(default_factory=dict)
    common: Mapping[int, float] | None = None


class TermFrequencies:
    """In how many contents a term occurs, remembered for a minute.

    Counts are from the index, those of common terms from the statistics of the table once it has any.
    """

    def __init__(self) -> None:
        # One entry a view: a look into the cache for each term of a question would cost more than all the rest.
        self._counts: TTLCache[tuple[int, int], _Counts] = TTLCache(MAX_REMEMBERED, REMEMBERED_SECONDS)

    async def of(self, tx: Tx, plan: SearchPlan, terms: Sequence[int]) -> dict[int, int]:
        """Return the number of contents that have each term."""
        collection, view, total = plan.collection.id, plan.view.number, plan.view.contents_total
        counts = self._counts.get((collection, view))
        if counts is None or len(counts.terms) > MAX_TERMS:
            counts = self._counts[collection, view] = _Counts()
        known = counts.terms
        found = {term: known[term] for term in terms if term in known}
        missing = [term for term in terms if term not in found]
        if not missing:
            return found
        # Where all are counted fast, nobody asks for the commonest.
        if counts.common is None and total > MAX_COUNTED:
            counts.common = await matches.commonest(tx, collection, view=view)
        common = counts.common or {}
        likely = {term: round(common[term] * total) for term in missing if term in common}
        likely = {term: n for term, n in likely.items() if n > MAX_COUNTED}
        rest = [term for term in missing if term not in likely]
        counted = likely | (await matches.count(tx, collection, rest, view=view) if rest else {})
        known.update(counted)
        return found | counted
