"""The Redis of a URL, one server or a cluster: its errors, and vectors as its values. Needs the extra `redis`."""

import struct
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, cast

import numpy as np
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterError,
    MaxConnectionsError,
    NoPermissionError,
    OutOfMemoryError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeout

from likewise.embedding.cache import Cached
from likewise.embedding.caches.redis.traffic import CacheFault
from likewise.errors import SettingsError

# Questions, the writer and a look, and some for those whose answers are late.
MAX_CONNECTIONS = 8
# Callers have left long before; this bounds how long a connection may be silent.
SILENT_SECONDS = 1.0
CLUSTER = "+cluster"
SCHEMES = ("redis", "rediss", "unix", f"redis{CLUSTER}", f"rediss{CLUSTER}")

# The last digit is the version of the form: what another version wrote is unknown, not misread.
_MAGIC = b"lwv1"
# magic, flags, numbers in the vector, tokens, tokens cut off, characters read
_HEAD = struct.Struct("<4sBIIII")
_ESTIMATED = 1
_CHECK_BYTES = 8


class RedisClient:
    """A few connections, made when they are first needed; `fault_of` names the fault of an error that it raises."""

    def __init__(self, url: str) -> None:
        """Prepare connections to the Redis at `url`; SettingsError if that cannot be read."""
        scheme = url.partition("://")[0]
        self._is_cluster = scheme.endswith(CLUSTER)
        # Its own words for what is wrong with a URL quote it, and with it a password.
        refusal = SettingsError(
            "LIKEWISE_REDIS_URL is not the URL of a Redis. Write it as redis://user:password@host:6379/0, or with "
            "rediss, unix, redis+cluster or rediss+cluster."
        )
        if scheme not in SCHEMES:
            raise refusal
        try:
            options = cast(dict[str, Any], parse_url(url.replace(CLUSTER, "", 1))) | _OPTIONS
            self._client: Any = _cluster(options) if self._is_cluster else _single(options)
        except (RedisError, RedisClusterException, ValueError, TypeError, OSError):
            raise refusal from None

    async def read(self, keys: Sequence[bytes]) -> list[object]:
        """Return the values of these keys in order, None where there is none."""
        read = self._client.mget_nonatomic if self._is_cluster else self._client.mget
        return cast(list[object], await read(keys))

    async def write(self, changes: Mapping[bytes, bytes | None], seconds: int) -> list[object]:
        """Set keys, to expire after so many seconds (0: never), or delete them; return an error for each failure."""
        pipeline = self._client.pipeline(transaction=False)
        for key, value in changes.items():
            if value is None:
                pipeline.delete(key)
            else:
                pipeline.set(key, value, ex=seconds or None)
        return cast(list[object], await pipeline.execute(raise_on_error=False))

    async def look(self, key: bytes) -> None:
        """See that every part of it answers; a cluster that does not is found anew the next time."""
        try:
            if self._is_cluster:
                await self._client.ping(target_nodes=RedisCluster.PRIMARIES)
            await self.read([key])
        except Exception:
            if self._is_cluster:
                await self._client.aclose()
            raise

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()


def fault_of(error: object) -> CacheFault:
    """Name the fault of an error of Redis, or of the way to it."""
    if isinstance(error, OutOfMemoryError):
        return "full"
    if isinstance(error, RedisTimeout | MaxConnectionsError | TimeoutError):
        return "slow"
    if isinstance(error, ClusterError):
        return "away"
    if isinstance(error, AuthenticationError | AuthorizationError | NoPermissionError | ResponseError):
        return "refused"
    return "away"


# Over what a URL may say: without retries, which the circuit does, and with bytes as they are.
_OPTIONS: dict[str, Any] = {
    "decode_responses": False,
    # Nothing of version 3 is used, and 2 takes no greeting.
    "protocol": 2,
    "socket_timeout": SILENT_SECONDS,
    "socket_connect_timeout": SILENT_SECONDS,
    "max_connections": MAX_CONNECTIONS,
}


def _single(options: dict[str, Any]) -> Redis:
    pool: Any = ConnectionPool(**options, retry=Retry(NoBackoff(), 0))
    # Not connected: an option that there is none of is refused here, not at the first request.
    pool.make_connection()
    return Redis.from_pool(pool)


def _cluster(options: dict[str, Any]) -> RedisCluster:
    secure = options.pop("connection_class", None) is SSLConnection
    return RedisCluster(**options, ssl=secure, retry=Retry(NoBackoff(), 0))


def packed(key: bytes, item: Cached) -> bytes:
    """Pack counts, vector (float32, little-endian) and a check over them and the key."""
    head = _HEAD.pack(
        _MAGIC, _ESTIMATED * item.estimated, len(item.vector), item.tokens, item.truncated, item.chars_read
    )
    body = head + item.vector.astype("<f4", copy=False).tobytes()
    return body + _check(key, body)


def unpacked(key: bytes, value: object) -> Cached | None:
    """Unpack the value of a key; None if it is cut, changed, another key's, or has a number that is not finite.

    Others may write to a shared store: only values that are whole and ours are believed.
    """
    if not isinstance(value, bytes) or len(value) < _HEAD.size + _CHECK_BYTES:
        return None
    body, check = value[:-_CHECK_BYTES], value[-_CHECK_BYTES:]
    magic, flags, numbers, tokens, truncated, chars_read = _HEAD.unpack_from(body)
    if magic != _MAGIC or flags > _ESTIMATED or len(body) != _HEAD.size + 4 * numbers or check != _check(key, body):
        return None
    # A copy of its own, so that it does not keep the whole answer.
    vector = np.frombuffer(body, "<f4", offset=_HEAD.size).astype(np.float32)
    if not np.isfinite(vector).all():
        return None
    return Cached(vector, tokens, truncated, chars_read, estimated=bool(flags))


def _check(key: bytes, body: bytes) -> bytes:
    """Make a check against accidents, not against somebody who may write: everything in it is known to them."""
    return blake2b(body, key=key, digest_size=_CHECK_BYTES).digest()
