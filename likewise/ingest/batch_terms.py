"""The terms of a batch's texts, encoded for their rows, and the running average that weighs them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from likewise.db import collections, terms
from likewise.db.collections import CollectionRow
from likewise.db.pool import Pool
from likewise.sealing import Sealing
from likewise.search.analyzer import terms_of


@dataclass
class _Lengths:
    """Terms and contents that this process wrote, and contents that it took away, which the collection's row lacks."""

    terms: int = 0
    contents: int = 0
    gone: int = 0


class TermAverages:
    """The running average of a collection's text length in terms.

    It is added to the collection's row every few seconds and not in each transaction, where that one row would make
    all writers wait for each other. A crash loses some seconds of it, which moves a weight by next to nothing.
    """

    def __init__(self, sealing: Sealing) -> None:
        """Open the keys of collections' terms with `sealing`."""
        self.sealing = sealing
        self._added: dict[tuple[int, int], _Lengths] = {}

    def average(self, collection: CollectionRow, batch: Sequence[int]) -> float:
        """Terms a text, over what is stored and a batch of such lengths."""
        ours = self._added.get((collection.tenant, collection.id), _Lengths())
        total = collection.terms_total + ours.terms + sum(batch)
        return total / max(1, collection.contents_total + ours.contents + len(batch))

    def add(self, collection: CollectionRow, batch: Sequence[int]) -> None:
        """Count a batch that has been committed, by its texts' lengths."""
        if batch:
            self._count(collection.tenant, collection.id, _Lengths(sum(batch), len(batch)))

    def take_away(self, collection: CollectionRow, gone: int) -> None:
        """Count contents that have gone; they leave the average as it is."""
        if gone:
            self._count(collection.tenant, collection.id, _Lengths(gone=gone))

    def _count(self, tenant: int, collection: int, lengths: _Lengths) -> None:
        ours = self._added.setdefault((tenant, collection), _Lengths())
        ours.terms += lengths.terms
        ours.contents += lengths.contents
        ours.gone += lengths.gone

    async def flush(self, pool: Pool) -> None:
        """Add what has come to the collections' rows."""
        pending, self._added = self._added, {}
        while pending:
            (tenant, collection), lengths = pending.popitem()
            try:
                async with pool.tenant(tenant) as tx:
                    await collections.add_terms(
                        tx, collection, terms=lengths.terms, contents=lengths.contents, gone=lengths.gone
                    )
            except BaseException:
                # The next time, with what else will have come.
                for key, left in [((tenant, collection), lengths), *pending.items()]:
                    self._count(*key, left)
                raise


class BatchTerms:
    """The terms of a batch's texts, encoded as they are stored."""

    def __init__(self, averages: TermAverages, collection: CollectionRow) -> None:
        self._averages = averages
        self._collection = collection
        self._rows: dict[bytes, tuple[int, terms.TermRow]] = {}

    def learn(self, texts: Mapping[bytes, str]) -> None:
        """Analyse those texts, by hash, that were not analysed yet."""
        keys = [key for key in texts if key not in self._rows]
        if not keys:
            return
        terms_key = self._collection.terms_key(self._averages.sealing)
        found = [terms_of(texts[key], terms_key) for key in keys]
        lengths = [len(one) for one in found]
        rows = terms.encode(found, self._averages.average(self._collection, lengths))
        self._rows.update(zip(keys, zip(lengths, rows, strict=True), strict=True))

    def row(self, key: bytes) -> terms.TermRow:
        """The encoded terms of a text."""
        return self._rows[key][1]

    def lengths(self, keys: Iterable[bytes]) -> list[int]:
        """The lengths in terms of these texts."""
        return [self._rows[key][0] for key in keys]
