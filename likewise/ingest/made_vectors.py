"""Vectors that a kind makes from records, for the views whose contents no model embeds."""

from collections.abc import Iterable, Mapping

import numpy as np

from likewise.db.collections import ViewRow
from likewise.db.contents import ContentKey, PreparedContent
from likewise.db.transaction import Tx
from likewise.embedding.provider import Vector
from likewise.vectors.store import TextReading, VectorStore

# A made vector is this near to unit length; half precision keeps no more.
UNIT_TOLERANCE = 1e-3


class MadeVectors:
    """The made vectors of a batch, each worked out once, however often its transaction is tried."""

    def __init__(self, store: VectorStore) -> None:
        self._store = store
        self._vectors: dict[ContentKey, Vector] = {}

    def learn(self, contents: Iterable[PreparedContent]) -> None:
        """Make the vectors of those contents that have none yet and are not embedded."""
        for content in contents:
            if content.vector is not None and content.key not in self._vectors:
                self._vectors[content.key] = np.asarray(content.vector(), np.float32)

    async def write(self, tx: Tx, views: Iterable[ViewRow], added: Mapping[ContentKey, int]) -> None:
        """Store the vectors of contents that were made in this transaction."""
        for view in views:
            keys = [key for key in added if key[0] == view.number and key in self._vectors]
            if view.generation is None or not keys:
                continue
            vectors = [_checked(view, view.generation.dimension, self._vectors[key]) for key in keys]
            ids = [added[key] for key in keys]
            await self._store.upsert(tx, view.generation, ids, np.stack(vectors), [TextReading(0, 0, 0)] * len(ids))


def _checked(view: ViewRow, dimension: int, vector: Vector) -> Vector:
    if vector.shape != (dimension,) or abs(float(np.linalg.norm(vector)) - 1) > UNIT_TOLERANCE:
        raise ValueError(f"a vector made for the view {view.name} is not of {dimension} numbers and unit length")
    return vector
