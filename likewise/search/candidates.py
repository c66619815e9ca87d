"""The candidates of a search: contents that its filter allows, and what each way of looking for them costs."""

import random
import time
from dataclasses import dataclass
from hashlib import sha256

from cachetools import TTLCache

from likewise.db import lookups
from likewise.db.arrays import BigintArray
from likewise.db.transaction import Tx
from likewise.db.where import Where, exactly, matching_contents
from likewise.filters import Filter
from likewise.search.plan import SearchPlan, StepTiming
from likewise.vectors.store import IdSubset

# Of so many contents at most the ids are taken and all are compared (1.1 us each); of more, only once it is known that
# this is cheaper than to ask those that an index gives.
MAX_IDS = 12_000
# Contents of which it is known, for a minute, which share fits a filter.
SAMPLED = 500
REMEMBERED_SECONDS = 60.0
MAX_REMEMBERED = 1_000
# Vectors of 384 halves that a page of 8 KiB holds, for how much of a table makes a sample; wrong by what it may be.
ROWS_OF_A_PAGE = 10


@dataclass(frozen=True)
class CandidateSet:
    """The contents that may be found: all, those of `among`, or those with a record that fits `where`.

    `share` is about how many of all contents these are; `matching` a SELECT of them.
    """

    timing: StepTiming
    where: Where
    among: IdSubset | None = None
    share: float = 1.0
    matching: Where | None = None

    @property
    def everything(self) -> bool:
        """True if there is no filter."""
        return self.matching is None

    @property
    def empty(self) -> bool:
        """True if nothing fits."""
        return self.among is not None and not len(self.among.ids)

    async def all_ids(self, tx: Tx) -> IdSubset:
        """Return all contents that fit, however many."""
        assert self.matching is not None
        ids = await lookups.matching_contents(tx, self.matching)
        assert ids is not None
        return IdSubset(ids, self.share)


class CandidateSets:
    """Works out candidate sets, with what it remembers of the shares of filters."""

    def __init__(self) -> None:
        self._samples: TTLCache[int, BigintArray] = TTLCache(MAX_REMEMBERED, REMEMBERED_SECONDS)
        self._shares: TTLCache[tuple[int, bytes], float] = TTLCache(MAX_REMEMBERED, REMEMBERED_SECONDS)

    async def of(self, tx: Tx, plan: SearchPlan, tree: Filter | None) -> CandidateSet:
        """Return the candidates under a filter, which may be narrower than the plan's."""
        started, collection = time.perf_counter(), plan.collection
        where = exactly(tree, collection.id, plan.view.number)
        if tree is None:
            return CandidateSet(StepTiming.since(started, "filter", contents="all"), where)
        matching = matching_contents(tree, collection.id, plan.indexed, plan.view.number)
        among, share = await self._among(tx, plan, tree, where, matching)
        timing = StepTiming.since(
            started,
            "filter",
            answered_by=matching.source,
            matching=None if among is None else len(among.ids),
            share=round(share, 4),
        )
        return CandidateSet(timing, where, among, share, matching)

    async def _among(
        self, tx: Tx, plan: SearchPlan, tree: Filter, where: Where, matching: Where
    ) -> tuple[IdSubset | None, float]:
        """The ids of the contents that fit, where these are few, and about which share of all they are."""
        total = max(1, plan.view.contents_total)
        by_index = plan.view.generation is not None and plan.view.generation.index_state == "ready"
        if by_index and matching.source == "scan":
            # A look at every record only to learn that there are many costs more than all the rest.
            share = await self._share(tx, plan, tree, where)
            if share * total > MAX_IDS:
                return None, share
        ids = await lookups.matching_contents(tx, matching, max_rows=MAX_IDS if by_index else None)
        if ids is not None:
            share = len(ids) / max(total, len(ids), 1)
            return IdSubset(ids, share), share
        # Of records that share their texts many fit while few contents do.
        return None, max(await self._share(tx, plan, tree, where), 1 / total)

    async def _share(self, tx: Tx, plan: SearchPlan, tree: Filter, where: Where) -> float:
        """About which share of the contents has a record that fits, by a sample."""
        # By a digest: a filter may hold as much as a request's body.
        key = (plan.generation.id, sha256(repr(tree).encode()).digest())
        share = self._shares.get(key)
        if share is None:
            sample = await self._sample(tx, plan)
            share = await lookups.count_fitting(tx, sample, where) / max(1, len(sample))
            self._shares[key] = share
        return share

    async def _sample(self, tx: Tx, plan: SearchPlan) -> BigintArray:
        sample = self._samples.get(plan.generation.id)
        if sample is not None:
            return sample
        # Neighbours on a page came together and may be alike: of many pages a few rows each are better.
        wanted = ROWS_OF_A_PAGE * SAMPLED
        percent = min(100.0, 100.0 * wanted / max(1, plan.view.contents_total))
        rows = (await lookups.sample_of(tx, plan.generation.id, percent, 4 * wanted)).numbers()
        sample = BigintArray.of(random.sample(rows.tolist(), min(SAMPLED, len(rows))))
        self._samples[plan.generation.id] = sample
        return sample
