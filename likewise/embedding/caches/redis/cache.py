"""The cache that processes share: vectors by digest in Redis, which may be slow, away, full or full of rubbish."""

import asyncio
from collections.abc import Mapping, Sequence
from contextvars import Context

from likewise.embedding.cache import Cached
from likewise.embedding.caches.redis.circuit import ANSWER_SECONDS, CacheTrouble, Circuit
from likewise.embedding.caches.redis.client import RedisClient, trouble_of
from likewise.embedding.caches.redis.packed import packed, unpacked
from likewise.embedding.caches.redis.questions import Known, Questions
from likewise.embedding.caches.redis.writes import Change, Writes
from likewise.observe import steps
from likewise.stopping import stop

PREFIX = b"likewise:vector:"
CLOSE_SECONDS = 1.0
# Some 50,000 keys are deleted in one; who deletes more has deleted them here, and goes on.
DELETE_SECONDS = 5.0
# Where no request is behind the question, less than the client gives a connection that is silent.
PATIENT_SECONDS = 0.9

REASONS: dict[CacheTrouble, str] = {
    "away": "Redis cannot be reached; vectors are made anew.",
    "slow": "Redis does not answer in time; vectors are made anew.",
    "full": "Redis is full: it is read, and takes no new vectors.",
    "refused": "Redis refuses what it is asked; see its user, password and rights, and that it takes writes.",
}
# No text has this digest, as far as anybody knows.
_NOBODYS = PREFIX + bytes(32)


class RedisCache:
    """Vectors under `likewise:vector:` and 32 bytes of digest.

    It is asked with a deadline of some milliseconds, and left out while it does not keep that; it is written to in the
    background. So it costs a caller little whatever is wrong with it.
    """

    def __init__(self, url: str, *, seconds: int, answer_seconds: float = ANSWER_SECONDS) -> None:
        """For the Redis at `url`; SettingsError if that cannot be read.

        Args:
            seconds: how long it keeps a vector; 0 is without limit.
            answer_seconds: how long an answer may take.
        """
        self._client = RedisClient(url)
        self._seconds = seconds
        self._circuit = Circuit(lambda: self._client.look(_NOBODYS), trouble_of, answer_seconds=answer_seconds)
        self._questions = Questions(self._fetch, self._circuit)
        self._writes = Writes(self._write, self._circuit)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def memory_bytes(self) -> int:
        """What waits to be written."""
        return self._writes.bytes

    @property
    def fault(self) -> str | None:
        """Why it is not asked, or takes nothing new, at present."""
        trouble = self._circuit.trouble or self._writes.trouble
        return None if trouble is None else REASONS[trouble]

    @property
    def dropped(self) -> int:
        """How many vectors did not fit among those that wait to be written."""
        return self._writes.dropped

    def start(self) -> None:
        """Connect, look now and then whether it is well, and write, all in the background."""
        if not self._tasks:
            work = (self._circuit.watch(), self._writes.run())
            # In a context of their own: they are no part of the request that came first.
            self._tasks = [asyncio.create_task(one, context=Context()) for one in work]

    async def get_many(self, keys: Sequence[bytes]) -> list[Cached | None]:
        """What is known of each key, in order; what waits to be written counts."""
        self.start()
        asked = [key for key in dict.fromkeys(keys) if key not in self._writes]
        known = await self._questions.ask(asked) if asked and self._circuit.closed else {}
        found = [self._writes[key] if key in self._writes else known.get(key) for key in keys]
        steps.cache_hits("redis", sum(item is not None for item in found))
        return found

    async def put_many(self, items: Mapping[bytes, Cached]) -> None:
        """Remember these: they are written a moment later."""
        self.start()
        for key, item in items.items():
            self._writes.add(key, item)

    async def delete_many(self, keys: Sequence[bytes], *, at_once: bool = False) -> None:
        """Forget these: nobody here gets them any more, and they are deleted a moment later.

        Args:
            at_once: whether to wait for that; of a Redis that is in trouble nobody waits.
        """
        self.start()
        for key in keys:
            self._writes.add(key, None)
        if at_once:
            await self._writes.written(keys, DELETE_SECONDS)

    async def clear(self) -> None:
        """Let go of what waits to be written; what waits to be deleted is."""
        self._writes.drop_vectors()

    async def look(self) -> str | None:
        """Why it cannot be used, asked now and without a deadline of milliseconds; None if it can."""
        try:
            await self._client.look(_NOBODYS)
            (refused,) = await self._client.write({_NOBODYS: b""}, 1)
            await self._client.write({_NOBODYS: None}, 0)
        except Exception as error:  # noqa: BLE001 - whatever it is, it says why
            return REASONS[trouble_of(error)]
        return REASONS[trouble_of(refused)] if isinstance(refused, Exception) else None

    async def flush(self, seconds: float) -> int:
        """Wait so long at most until all is written; returns how much is not."""
        return await self._writes.flush(seconds)

    async def close(self) -> None:
        """Write what waits, if that takes no longer than a second, and let the connections go."""
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

    async def _write(self, changes: Mapping[bytes, Change]) -> dict[bytes, CacheTrouble]:
        values = {PREFIX + key: None if item is None else packed(key, item) for key, item in changes.items()}
        results = await self._client.write(values, self._seconds)
        outcomes = zip(changes, results, strict=True)
        return {key: trouble_of(result) for key, result in outcomes if isinstance(result, Exception)}
