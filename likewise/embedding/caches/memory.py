"""The cache in this process's memory: what was used least lately goes first."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from likewise.embedding.cache import Cached

# key, row of the dictionary and the objects around the vector, measured with tracemalloc
OVERHEAD = 400


class MemoryCache:
    """Holds at most `limit` bytes; 0 holds nothing."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: OrderedDict[bytes, Cached] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    async def get_many(self, keys: Sequence[bytes]) -> list[Cached | None]:
        """What is known of each key, in order; it counts as used."""
        found = [self._items.get(key) for key in keys]
        for key, item in zip(keys, found, strict=True):
            if item is not None:
                self._items.move_to_end(key)
        return found

    async def put_many(self, items: Mapping[bytes, Cached]) -> None:
        """Remember these, and drop the oldest that no longer fit."""
        for key, item in items.items():
            self._drop(key)
            if _size(item) <= self._limit:
                self._items[key] = item
                self.bytes += _size(item)
        while self.bytes > self._limit:
            self._drop(next(iter(self._items)))

    async def delete_many(self, keys: Sequence[bytes]) -> None:
        """Forget these."""
        for key in keys:
            self._drop(key)

    def _drop(self, key: bytes) -> None:
        item = self._items.pop(key, None)
        if item is not None:
            self.bytes -= _size(item)


def _size(item: Cached) -> int:
    return item.vector.nbytes + OVERHEAD
