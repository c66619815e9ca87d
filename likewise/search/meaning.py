"""Contents ranked by meaning: the nearest within the candidates, by whichever way costs least and finds them."""

import time

from likewise.db.transaction import Tx
from likewise.embedding.provider import Vector
from likewise.search.candidates import CandidateSet
from likewise.search.explanation import StepTiming
from likewise.search.legs import LegRanking
from likewise.search.plan import Leg, SearchPlan
from likewise.vectors.store import FilterSubset, Ranking, VectorStore

# What visiting a vector costs, in microseconds, on the way through an index with a question to its record, by its id,
# and what finding out one of the ids costs.
BY_INDEX_US, BY_ID_US, AN_ID_US = 12.0, 1.1, 0.2
# So many more are visited than it takes where a filter has nothing to do with the meaning. For a hundred of a tenth
# that is two and a half standard deviations: 1 search of 100 needs more.
MORE_THAN_BY_CHANCE = 1.25


async def rank(
    tx: Tx, store: VectorStore, plan: SearchPlan, query: Vector, candidates: CandidateSet, depth: int
) -> LegRanking:
    """Return the `depth` candidates that are nearest to a query."""
    started = time.perf_counter()
    found = await _nearest(tx, store, plan, query, candidates, depth)
    timing = StepTiming.since(started, "meaning", plan=found.plan, found=len(found))
    scored = list(zip(found.contents, found.similarities, strict=True))
    return LegRanking(Leg(plan.options.view, "meaning"), scored, True, timing)


async def _nearest(
    tx: Tx, store: VectorStore, plan: SearchPlan, query: Vector, candidates: CandidateSet, depth: int
) -> Ranking:
    generation, total = plan.collection.active, plan.collection.contents_total
    if candidates.everything or candidates.among is not None:
        return await store.search(tx, generation, query, depth, candidates.among, total=total)
    share = max(candidates.share, 1e-6)
    visits = round(MORE_THAN_BY_CHANCE * depth / share)
    if visits * BY_INDEX_US < share * max(1, total) * (BY_ID_US + AN_ID_US):
        fitting = FilterSubset(candidates.where, share, visits)
        found = await store.search(tx, generation, query, depth, fitting, total=total)
        # Those near the query may fit far less often than others do (one asset, one service). What an index gives so
        # far from the query is not the nearest any more: of a million it found 0.18 of them.
        if len(found) >= depth:
            return found
    return await store.search(tx, generation, query, depth, await candidates.all_ids(tx), total=total)
