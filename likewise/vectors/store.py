"""VectorStore: the contract of a store of vectors. Filters, tenancy and text stay in Postgres."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from likewise.db.arrays import BigintArray
from likewise.db.collections import Generation
from likewise.db.transaction import Tx
from likewise.db.where import Where
from likewise.embedding.provider import Matrix, Vector


@dataclass(frozen=True)
class Ranking:
    """Contents and their cosine similarity, nearest first; `plan` says how they were found."""

    contents: tuple[int, ...]
    similarities: tuple[float, ...]
    plan: str = ""

    def __len__(self) -> int:
        return len(self.contents)


@dataclass(frozen=True)
class IdSubset:
    """The only contents to search: these ids, which are about `share` of all."""

    ids: BigintArray
    share: float


@dataclass(frozen=True)
class FilterSubset:
    """The only contents to search: those with a record that fits, which are about `share` of all.

    `max_visited` are asked, nearest first.
    """

    where: Where
    share: float
    max_visited: int


@dataclass(frozen=True)
class TextReading:
    """The tokens that were read of a text, those that were cut off, and the characters read."""

    tokens: int
    truncated: int
    chars_read: int


class VectorStore(Protocol):
    """Vectors of unit length by content id. `tx` carries the tenant and the transaction of the rows.

    A vector goes with its content, when the last record of that is deleted or changed, and with its collection.
    """

    async def upsert(
        self, tx: Tx, generation: Generation, ids: Sequence[int], vectors: Matrix, readings: Sequence[TextReading]
    ) -> None:
        """Store vectors, float32 (n, d) of unit length; one that is there already stays as it is."""
        ...

    async def search(
        self,
        tx: Tx,
        generation: Generation,
        query: Vector,
        k: int,
        among: IdSubset | FilterSubset | None = None,
        *,
        total: int,
    ) -> Ranking:
        """Find the k nearest to a query, float32 (d,) of unit length, by cosine; exact within an IdSubset.

        `total` is about how many vectors there are: the more, the further an approximate search has to look.
        """
        ...

    async def fetch(self, tx: Tx, generation: Generation, ids: Sequence[int]) -> Mapping[int, Vector]:
        """Return the vectors of those ids that have one."""
        ...

    async def forget(self, tx: Tx, ids: Sequence[int]) -> None:
        """Hear that these contents are gone, in the transaction that deletes them, in every generation that had them.

        The rows of the vectors are gone by then: a store that keeps vectors elsewhere too lets go of them once the
        transaction is committed (`tx.once_committed`). Ids are never given to other contents. Until it has heard, and
        in other processes, what it finds of them does harm to nobody: a search joins what every store finds to the
        rows, and answers nothing that is not there.
        """
        ...

    async def drop(self, tx: Tx, generations: Sequence[int]) -> None:
        """Hear that these generations are gone with their collection, in the transaction that drops it."""
        ...
