"""The cache that processes share, in Redis. Needs the extra `redis`."""

from likewise.embedding.caches.redis.cache import PATIENT_SECONDS, PREFIX, RedisCache
from likewise.embedding.caches.redis.traffic import ANSWER_SECONDS

__all__ = ["ANSWER_SECONDS", "PATIENT_SECONDS", "PREFIX", "RedisCache"]
