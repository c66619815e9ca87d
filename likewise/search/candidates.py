"""Scope: which contents a search may find, and what that costs each way of looking for them."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from likewise.db import lookups
from likewise.db.collections import CollectionRow
from likewise.db.ids import ContentIds
from likewise.db.transaction import Tx
from likewise.db.where import FilterSource, IndexedFields, Where, exactly, matching_contents
from likewise.filters import Filter
from likewise.vectors.store import IdSubset

# Of so many contents at most the ids are taken and all are compared (1.1 us each); of more, only once it is known that
# this is cheaper than to ask those that an index gives.
MOST_IDS = 12_000
# Contents of which it is known, for a minute, which share fits a filter.
SAMPLED = 500
REMEMBERED_SECONDS = 60.0
MOST_REMEMBERED = 1_000
# Vectors of 384 halves that a page of 8 KiB holds, for how much of a table makes a sample; wrong by what it may be.
ROWS_OF_A_PAGE = 10


@dataclass(frozen=True)
class Scope:
    """The contents that may be found: all, those of `among`, or those with a record that fits `where`.

    `share` is about how many of all contents these are; `source` what told.
    """

    where: Where
    among: IdSubset | None = None
    share: float = 1.0
    source: FilterSource | None = None
    matching: Where | None = None

    @property
    def everything(self) -> bool:
        """Whether there is no filter."""
        return self.matching is None

    @property
    def empty(self) -> bool:
        """Whether nothing fits."""
        return self.among is not None and not len(self.among.ids)

    async def all_ids(self, tx: Tx) -> IdSubset:
        """All contents that fit, however many."""
        assert self.matching is not None
        ids = await lookups.matching_contents(tx, self.matching)
        assert ids is not None
        return IdSubset(ids, self.share)


class Scopes:
    """Works out scopes, with what it remembers of the shares of filters."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._samples: dict[int, tuple[float, ContentIds]] = {}
        self._shares: dict[tuple[int, bytes], tuple[float, float]] = {}

    async def of(self, tx: Tx, collection: CollectionRow, tree: Filter | None, indexed: IndexedFields) -> Scope:
        """The scope of a filter in a collection."""
        where = exactly(tree, collection.id)
        if tree is None:
            return Scope(where)
        matching = matching_contents(tree, collection.id, indexed)
        total = max(1, collection.contents_total)
        by_index = collection.active.index_state == "ready"
        if by_index and matching.source == "scan":
            # A look at every record only to learn that there are many costs more than all the rest.
            share = await self._share(tx, collection, tree, where)
            if share * total > MOST_IDS:
                return Scope(where, None, share, matching.source, matching)
        most = MOST_IDS if by_index else None
        ids = await lookups.matching_contents(tx, matching, max_rows=most)
        if ids is not None:
            share = len(ids) / max(total, len(ids), 1)
            return Scope(where, IdSubset(ids, share), share, matching.source, matching)
        # Of records that share their texts many fit while few contents do.
        share = max(await self._share(tx, collection, tree, where), 1 / total)
        return Scope(where, None, share, matching.source, matching)

    async def _share(self, tx: Tx, collection: CollectionRow, tree: Filter, where: Where) -> float:
        """About which share of the contents has a record that fits, by a sample."""
        # By a digest: a filter may hold as much as a request's body.
        now, key = self._clock(), (collection.active.id, sha256(repr(tree).encode()).digest())
        known = self._shares.get(key)
        if known is not None and now - known[0] < REMEMBERED_SECONDS:
            return known[1]
        sample = await self._sample(tx, collection, now)
        share = await lookups.count_fitting(tx, sample, where) / max(1, len(sample))
        if len(self._shares) >= MOST_REMEMBERED:
            self._shares.clear()
        self._shares[key] = now, share
        return share

    async def _sample(self, tx: Tx, collection: CollectionRow, now: float) -> ContentIds:
        known = self._samples.get(collection.active.id)
        if known is not None and now - known[0] < REMEMBERED_SECONDS:
            return known[1]
        # Neighbours on a page came together and may be alike: of many pages a few rows each are better.
        wanted = ROWS_OF_A_PAGE * SAMPLED
        percent = min(100.0, 100.0 * wanted / max(1, collection.contents_total))
        rows = (await lookups.sample_of(tx, collection.active.id, percent, 4 * wanted)).numbers()
        sample = ContentIds.of(random.sample(rows.tolist(), min(SAMPLED, len(rows))))
        if len(self._samples) >= MOST_REMEMBERED:
            self._samples.clear()
        self._samples[collection.active.id] = now, sample
        return sample
