"""The cache in this process's memory, which drops the least recently used rows first."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from likewise.embedding.cache import Cached
from likewise.observe import steps


class MemoryCache:
    """A cache of at most `limit` bytes; 0 holds nothing."""

    fault = None

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: OrderedDict[bytes, Cached] = OrderedDict()
        self.memory_bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    async def get_many(self, keys: Sequence[bytes]) -> list[Cached | None]:
        """Return the row of each key in order, None where there is none; a row counts as used."""
        found = [self._items.get(key) for key in keys]
        for key, item in zip(keys, found, strict=True):
            if item is not None:
                self._items.move_to_end(key)
        steps.cache_hits("memory", sum(item is not None for item in found))
        return found

    async def put_many(self, items: Mapping[bytes, Cached]) -> None:
        """Remember these rows, and drop the oldest that no longer fit."""
        for key, item in items.items():
            self._drop(key)
            if item.memory_bytes <= self._limit:
                self._items[key] = item
                self.memory_bytes += item.memory_bytes
        while self.memory_bytes > self._limit:
            self._drop(next(iter(self._items)))

    async def delete_many(self, keys: Sequence[bytes], *, at_once: bool = False) -> None:
        """Forget these keys, at once in any case."""
        for key in keys:
            self._drop(key)

    async def clear(self) -> None:
        """Forget all rows."""
        self._items.clear()
        self.memory_bytes = 0

    def start(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing: its rows end with the process."""

    def _drop(self, key: bytes) -> None:
        item = self._items.pop(key, None)
        if item is not None:
            self.memory_bytes -= item.memory_bytes
