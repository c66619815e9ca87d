"""The cache that the settings ask for."""

from typing import TYPE_CHECKING

from likewise.embedding.cache import Cache
from likewise.embedding.caches.layered import LayeredCache
from likewise.embedding.caches.memory import MemoryCache
from likewise.errors import SettingsError
from likewise.settings import Settings

if TYPE_CHECKING:
    from likewise.embedding.caches.redis import RedisCache


def open_cache(settings: Settings) -> Cache:
    """Memory, and behind it Redis if the settings name one; SettingsError as for `open_redis`."""
    redis = open_redis(settings)
    if redis is None:
        return MemoryCache(settings.cache_bytes)
    return LayeredCache(MemoryCache(settings.cache_bytes), redis) if settings.cache_bytes else redis


def open_redis(settings: Settings, *, patient: bool = False) -> "RedisCache | None":
    """The Redis that the settings name; SettingsError if its URL cannot be read or the extra is missing.

    Nothing is connected to as yet: a Redis that is away keeps nobody from starting.

    Args:
        patient: whether answers are waited for, where no request is behind the question.
    """
    if settings.redis_url is None:
        return None
    try:
        # Imported here: who has no Redis need not have its client.
        from likewise.embedding.caches.redis import ANSWER_SECONDS, PATIENT_SECONDS, RedisCache  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "redis":
            raise
        raise SettingsError("LIKEWISE_REDIS_URL: redis needs an extra: pip install 'likewise[redis]'") from None
    answer_seconds = PATIENT_SECONDS if patient else ANSWER_SECONDS
    return RedisCache(settings.redis_url, seconds=settings.cache_seconds, answer_seconds=answer_seconds)
