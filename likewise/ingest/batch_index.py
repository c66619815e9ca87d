"""The index of a batch: terms with their weights, and the vectors that a kind makes from records."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from likewise.db import collections, terms
from likewise.db.collections import CollectionRow, ViewRow
from likewise.db.contents import ContentKey, PreparedContent
from likewise.db.pool import Pool
from likewise.db.transaction import Tx
from likewise.embedding.provider import Vector
from likewise.sealing import Sealing
from likewise.search.analyzer import terms_of
from likewise.vectors.store import TextReading, VectorStore

# A made vector is this near to unit length; half precision keeps no more.
UNIT_TOLERANCE = 1e-3

# A tenant's collection, and the number of a view.
_Place = tuple[int, int, int]


class TermAverages:
    """The running average of a collection's text length in terms.

    It is added to the collection's row every few seconds and not in each transaction, where that one row would make
    all writers wait for each other. A crash loses some seconds of it, which moves a weight by next to nothing.
    """

    def __init__(self, sealing: Sealing) -> None:
        """Open the keys of collections' terms with `sealing`."""
        self.sealing = sealing
        # Terms and contents that this process wrote, and contents that it took away, which the collection's row lacks.
        self._added: dict[_Place, Counter[str]] = {}

    def average(self, collection: CollectionRow, view: ViewRow, batch: Sequence[int]) -> float:
        """Return the terms of a text, on average over what is stored and a batch of such lengths."""
        ours = self._added.get((collection.tenant, collection.id, view.number), Counter[str]())
        total = view.terms_total + ours["terms"] + sum(batch)
        return total / max(1, view.contents_total + ours["contents"] + len(batch))

    def count(self, collection: CollectionRow, view: int, batch: Sequence[int], gone: int) -> None:
        """Count a batch that has been committed, by its texts' lengths, and what has gone: that leaves the average."""
        if batch or gone:
            lengths = Counter(terms=sum(batch), contents=len(batch), gone=gone)
            self._added.setdefault((collection.tenant, collection.id, view), Counter()).update(lengths)

    async def flush(self, pool: Pool) -> None:
        """Add what has come to the collections' rows."""
        pending, self._added = self._added, {}
        while pending:
            (tenant, collection, view), lengths = pending.popitem()
            try:
                async with pool.tenant(tenant) as tx:
                    await collections.add_terms(tx, collection, view, **lengths)
            except BaseException:
                # The next time, with what else will have come.
                for place, left in [((tenant, collection, view), lengths), *pending.items()]:
                    self._added.setdefault(place, Counter()).update(left)
                raise


class BatchIndex:
    """The terms of a batch's texts, encoded as they are stored, and the made vectors of its records.

    Each is worked out once, however often the transaction is tried.
    """

    def __init__(self, averages: TermAverages, store: VectorStore, collection: CollectionRow) -> None:
        self._averages = averages
        self._store = store
        self._collection = collection
        self._rows: dict[ContentKey, tuple[int, terms.TermRow]] = {}
        self._vectors: dict[ContentKey, Vector] = {}

    def learn(self, contents: Sequence[PreparedContent]) -> None:
        """Analyse the texts, and make the vectors, of those contents that were not looked at yet."""
        for view in self._collection.views:
            if view.terms:
                self._learn_terms(view, {one.key: one.text for one in contents if one.view == view.number})
        for one in contents if self._collection.beside else ():
            if one.vector is not None and one.key not in self._vectors:
                self._vectors[one.key] = np.asarray(one.vector(), np.float32)

    def _learn_terms(self, view: ViewRow, texts: Mapping[ContentKey, str | None]) -> None:
        keys = [key for key in texts if key not in self._rows]
        if not keys:
            return
        terms_key = self._collection.terms_key(self._averages.sealing)
        found = [terms_of(texts[key] or "", terms_key) for key in keys]
        lengths = [len(one) for one in found]
        rows = terms.encode(found, self._averages.average(self._collection, view, lengths))
        self._rows.update(zip(keys, zip(lengths, rows, strict=True), strict=True))

    async def write(self, tx: Tx, added: Mapping[ContentKey, int]) -> None:
        """Store terms and made vectors of contents that were made in this transaction."""
        for view in self._collection.views:
            rows = {pk: self._rows[key][1] for key, pk in added.items() if view.terms and key[0] == view.number}
            if rows:
                await terms.write(tx, self._collection.id, rows, view=view.number)
        for view in self._collection.beside:
            made = {
                pk: self._vectors[key] for key, pk in added.items() if key[0] == view.number and key in self._vectors
            }
            if view.generation is not None and made:
                vectors = [_checked(view, view.generation.dimension, vector) for vector in made.values()]
                readings = [TextReading(0, 0, 0)] * len(made)
                await self._store.upsert(tx, view.generation, list(made), np.stack(vectors), readings)

    def count(self, added: Iterable[ContentKey], gone: Iterable[int]) -> None:
        """Count contents that were committed, and those that went, given by their views."""
        known, left = [key for key in added if key in self._rows], Counter(gone)
        for view in self._collection.views:
            if view.terms:
                lengths = [self._rows[key][0] for key in known if key[0] == view.number]
                self._averages.count(self._collection, view.number, lengths, left[view.number])


def _checked(view: ViewRow, dimension: int, vector: Vector) -> Vector:
    if vector.shape != (dimension,) or abs(float(np.linalg.norm(vector)) - 1) > UNIT_TOLERANCE:
        raise ValueError(f"a vector made for the view {view.name} is not of {dimension} numbers and unit length")
    return vector
