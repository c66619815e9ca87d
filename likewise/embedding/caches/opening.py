"""The cache that the settings ask for: this process's memory, Redis, or one in front of the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from likewise.embedding.cache import Cache, Cached
from likewise.embedding.caches.memory import MemoryCache
from likewise.errors import SettingsError
from likewise.settings import Settings

if TYPE_CHECKING:
    from likewise.embedding.caches.redis import RedisCache


def open_cache(settings: Settings) -> Cache:
    """Open memory, and behind it Redis if the settings name one; SettingsError as for `open_redis`."""
    redis = open_redis(settings)
    if redis is None:
        return MemoryCache(settings.cache_bytes)
    return LayeredCache(MemoryCache(settings.cache_bytes), redis) if settings.cache_bytes else redis


def open_redis(settings: Settings, *, patient: bool = False) -> "RedisCache | None":
    """Open the Redis that the settings name; SettingsError if its URL cannot be read or the extra is missing.

    Nothing is connected to as yet: a Redis that is away keeps nobody from starting.

    Args:
        patient: whether answers are waited for, as no request waits.
    """
    if settings.redis_url is None:
        return None
    try:
        # Imported here: its client is an extra.
        from likewise.embedding.caches.redis import ANSWER_SECONDS, PATIENT_SECONDS, RedisCache  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "redis":
            raise
        raise SettingsError("LIKEWISE_REDIS_URL: redis needs an extra: pip install 'likewise[redis]'") from None
    answer_seconds = PATIENT_SECONDS if patient else ANSWER_SECONDS
    return RedisCache(settings.redis_url, seconds=settings.cache_seconds, answer_seconds=answer_seconds)


@dataclass(eq=False)
class LayeredCache:
    """A cache in memory in front of a far one, which is asked only for missing rows; these are near from then on."""

    near: MemoryCache
    far: Cache

    @property
    def memory_bytes(self) -> int:
        """Bytes that both hold in this process's memory."""
        return self.near.memory_bytes + self.far.memory_bytes

    @property
    def fault(self) -> str | None:
        """The reason for which the far one is left out at present."""
        return self.far.fault

    def start(self) -> None:
        """Begin the far one's work in the background."""
        self.far.start()

    async def get_many(self, keys: Sequence[bytes]) -> list[Cached | None]:
        """Return the row of each key in order, None where there is none."""
        found = await self._fill([None] * len(keys), keys, self.near)
        missing = [place for place, row in enumerate(found) if row is None]
        if not missing:
            return found
        found = await self._fill(found, keys, self.far)
        await self.near.put_many({keys[place]: row for place in missing if (row := found[place]) is not None})
        # Meanwhile another request may have made a row that the far one did not have.
        return await self._fill(found, keys, self.near)

    async def put_many(self, items: Mapping[bytes, Cached]) -> None:
        """Remember these rows in both."""
        await self.near.put_many(items)
        await self.far.put_many(items)

    async def delete_many(self, keys: Sequence[bytes], *, at_once: bool = False) -> None:
        """Forget these keys in both."""
        await self.near.delete_many(keys)
        await self.far.delete_many(keys, at_once=at_once)

    async def clear(self) -> None:
        """Forget all that both hold in this process."""
        await self.near.clear()
        await self.far.clear()

    async def close(self) -> None:
        """Close the far one; rows in memory end with the process."""
        await self.far.close()

    async def _fill(self, found: list[Cached | None], keys: Sequence[bytes], tier: Cache) -> list[Cached | None]:
        """Fill in the rows that a tier has of those that are missing."""
        rest = [place for place, row in enumerate(found) if row is None]
        known = dict(zip(rest, await tier.get_many([keys[place] for place in rest]), strict=True))
        return [known.get(place, row) for place, row in enumerate(found)]
