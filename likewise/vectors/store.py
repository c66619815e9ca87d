"""VectorStore: what a store of vectors can do. Filters, tenancy and text stay in Postgres."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from likewise.db.collections import Generation
from likewise.db.pool import Tx

Vector = NDArray[np.float32]
Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Ranking:
    """Contents and their cosine similarity, nearest first."""

    contents: tuple[int, ...]
    similarities: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.contents)

    def without(self, content: int | None) -> "Ranking":
        """The ranking with one content left out."""
        if content is None or content not in self.contents:
            return self
        at = self.contents.index(content)
        return Ranking(
            self.contents[:at] + self.contents[at + 1 :], self.similarities[:at] + self.similarities[at + 1 :]
        )


@dataclass(frozen=True)
class Reading:
    """How a text was read into its vector: tokens read, tokens cut off, characters read."""

    tokens: int
    truncated: int
    chars_read: int


class VectorStore(Protocol):
    """Vectors of unit length by content id. `tx` carries the tenant and the transaction of the rows."""

    async def upsert(
        self, tx: Tx, generation: Generation, ids: Sequence[int], vectors: Matrix, readings: Sequence[Reading]
    ) -> None:
        """Store vectors, float32 (n, d) of unit length; one that is there already stays as it is."""
        ...

    async def search(
        self, tx: Tx, generation: Generation, query: Vector, k: int, among: Sequence[int] | None = None
    ) -> Ranking:
        """The k nearest to a query, float32 (d,) of unit length, by cosine similarity; exact within `among`."""
        ...

    async def fetch(self, tx: Tx, generation: Generation, ids: Sequence[int]) -> Mapping[int, Vector]:
        """The vectors of those ids that have one."""
        ...

    async def delete(self, tx: Tx, generation: Generation, ids: Sequence[int]) -> None:
        """Take vectors away; ids without one are no error."""
        ...
