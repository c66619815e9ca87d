"""In how many contents a term occurs, remembered for a minute."""

import time
from collections.abc import Sequence

from likewise.db import matches
from likewise.db.pool import Tx

REMEMBERED_SECONDS = 60.0
MOST_REMEMBERED = 100_000


class TermFrequencies:
    """Counts from the index, so that common words are counted once a minute and not once a query."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[int, float]] = {}

    async def of(self, tx: Tx, collection: int, wanted: Sequence[int]) -> dict[int, int]:
        """The number of contents that have each term."""
        now = time.monotonic()
        found = {
            term: known[0]
            for term in wanted
            if (known := self._known.get((collection, term))) is not None and now - known[1] < REMEMBERED_SECONDS
        }
        missing = [term for term in wanted if term not in found]
        if missing:
            counted = await matches.count(tx, collection, missing)
            if len(self._known) > MOST_REMEMBERED:
                self._known.clear()
            self._known.update({(collection, term): (n, now) for term, n in counted.items()})
            found.update(counted)
        return found
