"""What is to be written to a store, bounded, by one task in the background."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import islice

from likewise.embedding.cache import Cached
from likewise.embedding.caches.memory import OVERHEAD, bytes_of
from likewise.embedding.caches.redis.circuit import CacheTrouble, Circuit
from likewise.observe import steps

# Some 16,000 vectors of 384 numbers: what a processor embeds in half a minute.
MOST_BYTES = 32 * 2**20
# In one round trip; packing them holds the event loop for about 1 ms.
BATCH = 128
# Room in a full store comes by expiry or eviction, or by somebody who makes some.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 5.0
LOOK_SECONDS = 0.05

# A vector to write, or None for a key to delete.
Change = Cached | None
# Writes these, and answers what kept each of the others from being written.
Write = Callable[[Mapping[bytes, Change]], Awaitable[Mapping[bytes, CacheTrouble]]]


class Writes:
    """Changes that wait, the newest for each key; a vector that does not fit is dropped and counted.

    A deletion is never dropped: what is to be forgotten would be served again.
    """

    def __init__(self, write: Write, circuit: Circuit) -> None:
        self._write = write
        self._circuit = circuit
        self._waiting: dict[bytes, Change] = {}
        self._some = asyncio.Event()
        self._settled = asyncio.Condition()
        self._pause = FIRST_PAUSE_SECONDS
        self.bytes = 0
        self.dropped = 0
        self.trouble: CacheTrouble | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, key: bytes) -> bool:
        return key in self._waiting

    def __getitem__(self, key: bytes) -> Change:
        return self._waiting[key]

    def add(self, key: bytes, change: Change) -> None:
        """Write this some time soon."""
        deletes = key in self._waiting and self._waiting[key] is None
        self._remove(key)
        if change is not None and self.bytes + _size(change) > MOST_BYTES:
            self.dropped += 1
            steps.cache_dropped()
            if not deletes:
                return
            change = None
        self._waiting[key] = change
        self.bytes += _size(change)
        self._some.set()

    async def run(self) -> None:
        """Write what comes, while the store is well; does not end by itself."""
        while True:
            await self._some.wait()
            await self._circuit.until_closed()
            try:
                await self._write_some()
            except Exception as error:  # noqa: BLE001 - whatever it is, the store is no help
                self._circuit.failed(error)
            async with self._settled:
                self._settled.notify_all()
            if self.trouble is not None:
                await asyncio.sleep(self._pause)
                self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)

    async def flush(self, seconds: float) -> int:
        """Wait so long for all of it to be written, less where the store takes nothing; returns how many are not."""
        try:
            async with asyncio.timeout(seconds), self._settled:
                await self._settled.wait_for(lambda: not self._waiting or self.trouble is not None)
        except TimeoutError:
            pass
        return len(self._waiting)

    async def written(self, keys: Iterable[bytes], seconds: float) -> None:
        """Wait so long for these to be written, and no longer than the store is well."""
        left = set(keys) & self._waiting.keys()
        ends = time.monotonic() + seconds
        while left and self.trouble is None and self._circuit.closed and time.monotonic() < ends:
            # A store that hangs settles nothing: the circuit finds that out meanwhile.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS), self._settled:
                    await self._settled.wait()
            left &= self._waiting.keys()

    def drop_vectors(self) -> None:
        """Forget the vectors that wait to be written. One that may be on its way to the store is deleted there."""
        for key in [key for key, change in self._waiting.items() if change is not None]:
            self.add(key, None)

    async def _write_some(self) -> None:
        # While the store takes nothing, one is enough to find out whether it does again.
        batch = dict(islice(self._waiting.items(), 1 if self.trouble else BATCH))
        refused = await self._write(batch)
        for key, change in batch.items():
            if key not in self._waiting or self._waiting[key] is not change:
                continue
            self._remove(key)
            if key in refused:
                # Behind the others, in case it is this one alone.
                self.add(key, change)
        self.trouble = next(iter(refused.values()), None)
        if self.trouble is None:
            self._pause = FIRST_PAUSE_SECONDS
        else:
            steps.cache_failed(self.trouble)

    def _remove(self, key: bytes) -> None:
        if key in self._waiting:
            self.bytes -= _size(self._waiting.pop(key))
        if not self._waiting:
            self._some.clear()


def _size(change: Change) -> int:
    return OVERHEAD if change is None else bytes_of(change)
