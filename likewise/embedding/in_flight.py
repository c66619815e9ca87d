"""Texts that are being embedded, so that whoever wants the same waits for the same."""

import asyncio
from collections.abc import Iterable
from functools import partial

from likewise.embedding.cache import Cached
from likewise.embedding.queue import Waiting


class InFlight:
    """By the key of the cache: from when a text is queued until its vector is in the cache, or nobody wants it."""

    def __init__(self) -> None:
        self._items: dict[bytes, Waiting] = {}

    def of(self, keys: Iterable[bytes]) -> dict[bytes, Waiting]:
        """Those of these that can still come to something."""
        return {key: item for key in keys if (item := self._items.get(key)) and item.of_use}

    def add(self, key: bytes, item: Waiting) -> None:
        """One more, for which its owner will call `leave_behind`."""
        self._items[key] = item
        item.future.add_done_callback(partial(self._landed, key, item))

    def leave_behind(self, key: bytes, item: Waiting) -> None:
        """Its owner needs it no more: it is in the cache, or others still wait for it."""
        item.left_behind = True
        if item.future.done():
            self._forget(key, item)

    def _landed(self, key: bytes, item: Waiting, future: asyncio.Future[Cached]) -> None:
        # A vector that is not in the cache as yet is still found here: others need not make it again.
        if item.left_behind or future.cancelled() or future.exception() is not None:
            self._forget(key, item)

    def _forget(self, key: bytes, item: Waiting) -> None:
        if self._items.get(key) is item:
            del self._items[key]
