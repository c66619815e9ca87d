"""Contents ranked by words: BM25 over the rarest terms of a question."""

import time
from collections.abc import Mapping, Sequence

from cachetools import TTLCache

from likewise.db import matches
from likewise.db.transaction import Tx
from likewise.search.candidates import CandidateSet
from likewise.search.explanation import StepTiming
from likewise.search.legs import LegRanking
from likewise.search.plan import Leg, SearchPlan

# Of the terms that are counted so many are ranked, the rarest: each costs time, and the hundredth changes nothing.
MAX_RANKED_TERMS = 64
REMEMBERED_SECONDS = 60.0
MAX_REMEMBERED = 100_000
# Counting visits each content, 0.4 us each: of more the statistics of the table tell, to 20 % and mostly to 5 %, which
# moves the rarity of so common a term by 2 %.
MAX_COUNTED = 1_000


class WordRanker:
    """Ranks contents by words."""

    def __init__(self) -> None:
        self._frequencies = TermFrequencies()

    async def rank(
        self,
        tx: Tx,
        plan: SearchPlan,
        terms: Sequence[int],
        candidates: CandidateSet,
        depth: int,
        *,
        min_found: int = 0,
    ) -> LegRanking:
        """Return the best `depth` candidates; common words must do where `min_found` are not found otherwise."""
        started, collection = time.perf_counter(), plan.collection
        counted = await self._frequencies.of(tx, collection.id, terms, collection.contents_total)
        rare = dict(sorted(counted.items(), key=lambda item: (item[1], item[0]))[:MAX_RANKED_TERMS])
        among = None if candidates.everything else candidates.among.ids if candidates.among else candidates.where
        found = await matches.rank(
            tx,
            collection.id,
            rare,
            collection.contents_total,
            depth,
            min_found=min_found,
            among=among,
            share=candidates.share,
        )
        chosen = found.candidates
        timing = StepTiming.since(
            started,
            "words",
            terms=len(chosen.terms),
            conjunctions=len(chosen.conjunctions),
            every_match_ranked=chosen.complete,
            found=len(found.scored),
        )
        return LegRanking(Leg(plan.options.view, "words"), found.scored, chosen.complete, timing)


class TermFrequencies:
    """In how many contents a term occurs, remembered for a minute.

    Counts are from the index, those of common terms from the statistics of the table once it has any.
    """

    def __init__(self) -> None:
        self._known: TTLCache[tuple[int, int], int] = TTLCache(MAX_REMEMBERED, REMEMBERED_SECONDS)
        self._common: TTLCache[int, Mapping[int, float]] = TTLCache(MAX_REMEMBERED // 1_000, REMEMBERED_SECONDS)

    async def of(self, tx: Tx, collection: int, terms: Sequence[int], total: int) -> dict[int, int]:
        """Return the number of contents that have each term, of about `total`."""
        known = {term: self._known.get((collection, term)) for term in terms}
        found = {term: n for term, n in known.items() if n is not None}
        missing = [term for term in terms if term not in found]
        if not missing:
            return found
        common = await self._commonest(tx, collection, total)
        likely = {term: round(common[term] * total) for term in missing if term in common}
        likely = {term: n for term, n in likely.items() if n > MAX_COUNTED}
        rest = [term for term in missing if term not in likely]
        counted = await matches.count(tx, collection, rest) if rest else {}
        self._known.update({(collection, term): n for term, n in (likely | counted).items()})
        return found | likely | counted

    async def _commonest(self, tx: Tx, collection: int, total: int) -> Mapping[int, float]:
        """The share of contents that the commonest terms occur in; empty where all are counted fast."""
        if total <= MAX_COUNTED:
            return {}
        common = self._common.get(collection)
        if common is None:
            common = self._common[collection] = await matches.commonest(tx, collection)
        return common
