"""In how many contents a term occurs, remembered for a minute."""

import time
from collections.abc import Mapping, Sequence

from likewise.db import matches
from likewise.db.transaction import Tx

REMEMBERED_SECONDS = 60.0
MOST_REMEMBERED = 100_000
# Counting visits each content, 0.4 us each: of more the statistics of the table tell, to 20 % and mostly to 5 %, which
# moves the rarity of so common a term by 2 %.
MOST_COUNTED = 1_000


class TermFrequencies:
    """Counts from the index, those of common terms from the statistics of the table once it has any."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[int, float]] = {}
        self._common: dict[int, tuple[Mapping[int, float], float]] = {}

    async def of(self, tx: Tx, collection: int, wanted: Sequence[int], total: int) -> dict[int, int]:
        """The number of contents that have each term, of about `total`."""
        now = time.monotonic()
        found = {
            term: known[0]
            for term in wanted
            if (known := self._known.get((collection, term))) is not None and now - known[1] < REMEMBERED_SECONDS
        }
        missing = [term for term in wanted if term not in found]
        if not missing:
            return found
        common = await self._commonest(tx, collection, total, now)
        likely = {term: round(common[term] * total) for term in missing if term in common}
        told = {term: n for term, n in likely.items() if n > MOST_COUNTED}
        rest = [term for term in missing if term not in told]
        counted = await matches.count(tx, collection, rest) if rest else {}
        if len(self._known) > MOST_REMEMBERED:
            self._known.clear()
        self._known.update({(collection, term): (n, now) for term, n in (told | counted).items()})
        return found | told | counted

    async def _commonest(self, tx: Tx, collection: int, total: int, now: float) -> Mapping[int, float]:
        """The share of contents that the commonest terms occur in; empty where all are counted fast."""
        if total <= MOST_COUNTED:
            return {}
        known = self._common.get(collection)
        if known is None or now - known[1] >= REMEMBERED_SECONDS:
            if len(self._common) > MOST_REMEMBERED // 1_000:
                self._common.clear()
            known = self._common[collection] = await matches.commonest(tx, collection), now
        return known[0]
