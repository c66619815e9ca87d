"""The cache that processes share: vectors by digest in Redis, which may be slow, away, full or full of rubbish."""

import asyncio
from collections.abc import Mapping, Sequence
from contextvars import Context

from likewise.embedding.cache import Cached
from likewise.embedding.caches.redis.client import RedisClient, fault_of, packed, unpacked
from likewise.embedding.caches.redis.traffic import (
    ANSWER_SECONDS,
    CacheFault,
    Change,
    Known,
    StoreCircuit,
    StoreQuestions,
    StoreWrites,
)
from likewise.observe import steps
from likewise.stopping import stop

PREFIX = b"likewise:vector:"
CLOSE_SECONDS = 1.0
# Some 50,000 keys are deleted in one; a caller that deletes more has deleted them here, and goes on.
DELETE_SECONDS = 5.0
# Where no request waits; less than the client gives a connection that is silent.
PATIENT_SECONDS = 0.9

REASONS: dict[CacheFault, str] = {
    "away": "Redis cannot be reached; vectors are made anew.",
    "slow": "Redis does not answer in time; vectors are made anew.",
    "full": "Redis is full: it is read, and takes no new vectors.",
    "refused": "Redis refuses what it is asked; see its user, password and rights, and that it takes writes.",
}
# No text has this digest, as far as anybody knows.
_NOBODYS = PREFIX + bytes(32)


class RedisCache:
    """Vectors under `likewise:vector:` and 32 bytes of digest.

    Redis is asked with a deadline of some milliseconds, left out while it does not keep that, and written to in the
    background. So it costs a caller little, whatever its fault.
    """

    def __init__(self, url: str, *, seconds: int, answer_seconds: float = ANSWER_SECONDS) -> None:
        """Cache in the Redis at `url`; SettingsError if that cannot be read.

        Args:
            seconds: for which it keeps a vector; 0 is without limit.
            answer_seconds: the longest that an answer may take.
        """
        self._client = RedisClient(url)
        self._seconds = seconds
        self._circuit = StoreCircuit(lambda: self._client.look(_NOBODYS), fault_of, answer_seconds=answer_seconds)
        self._questions = StoreQuestions(self._fetch, self._circuit)
        self._writes = StoreWrites(self._write, self._circuit)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def memory_bytes(self) -> int:
        """Bytes that wait to be written."""
        return self._writes.bytes

    @property
    def fault(self) -> str | None:
        """The reason for which it is not asked, or takes nothing new, at present."""
        fault = self._circuit.fault or self._writes.fault
        return None if fault is None else REASONS[fault]

    @property
    def dropped(self) -> int:
        """The number of vectors that did not fit among those that wait to be written."""
        return self._writes.dropped

    def start(self) -> None:
        """Begin to connect, to look now and then whether it is well, and to write, in the background."""
        if not self._tasks:
            work = (self._circuit.watch(), self._writes.run())
            # In a context of their own: they are no part of the request that came first.
            self._tasks = [asyncio.create_task(one, context=Context()) for one in work]

    async def get_many(self, keys: Sequence[bytes]) -> list[Cached | None]:
        """Return the row of each key in order, None where there is none; rows that wait to be written count."""
        self.start()
        asked = [key for key in dict.fromkeys(keys) if key not in self._writes]
        known = await self._questions.ask(asked) if asked and self._circuit.closed else {}
        found = [self._writes[key] if key in self._writes else known.get(key) for key in keys]
        steps.cache_hits("redis", sum(item is not None for item in found))
        return found

    async def put_many(self, items: Mapping[bytes, Cached]) -> None:
        """Remember these rows, which are written a moment later."""
        self.start()
        for key, item in items.items():
            self._writes.add(key, item)

    async def delete_many(self, keys: Sequence[bytes], *, at_once: bool = False) -> None:
        """Forget these keys: nobody here gets their rows any more, and they are deleted a moment later.

        Args:
            at_once: whether to wait for that; nobody waits for a Redis with a fault.
        """
        self.start()
        for key in keys:
            self._writes.add(key, None)
        if at_once:
            await self._writes.written(keys, DELETE_SECONDS)

    async def clear(self) -> None:
        """Let go of rows that wait to be written; keys that wait to be deleted are deleted."""
        self._writes.drop_vectors()

    async def look(self) -> str | None:
        """Look now, without a deadline of milliseconds, and return why it cannot be used; None if it can."""
        try:
            await self._client.look(_NOBODYS)
            (refused,) = await self._client.write({_NOBODYS: b""}, 1)
            await self._client.write({_NOBODYS: None}, 0)
        except Exception as error:  # noqa: BLE001 - whatever it is, it says why
            return REASONS[fault_of(error)]
        return REASONS[fault_of(refused)] if isinstance(refused, Exception) else None

    async def flush(self, seconds: float) -> int:
        """Wait so long at most until all is written; return how many changes are not."""
        return await self._writes.flush(seconds)

    async def close(self) -> None:
        """Write waiting changes, if that takes no longer than a second, and let the connections go."""
        if self._tasks and self._circuit.closed:
            await self._writes.flush(CLOSE_SECONDS)
        await stop(self._tasks)
        await self._questions.close()
        await self._client.close()

    async def _fetch(self, keys: Sequence[bytes]) -> Known:
        values = await self._client.read([PREFIX + key for key in keys])
        known = {}
        for key, value in zip(keys, values, strict=True):
            item = unpacked(key, value)
            if item is not None:
                known[key] = item
            elif value is not None:
                steps.cache_failed("rubbish")
        return known

    async def _write(self, changes: Mapping[bytes, Change]) -> dict[bytes, CacheFault]:
        values = {PREFIX + key: None if item is None else packed(key, item) for key, item in changes.items()}
        results = await self._client.write(values, self._seconds)
        outcomes = zip(changes, results, strict=True)
        return {key: fault_of(result) for key, result in outcomes if isinstance(result, Exception)}
