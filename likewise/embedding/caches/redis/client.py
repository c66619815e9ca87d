"""The Redis of a URL, one server or a cluster, and what its errors mean. Needs the extra `redis`."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

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

from likewise.embedding.caches.redis.circuit import CacheTrouble
from likewise.errors import SettingsError

# Questions, the writer and a look, and some for those whose answers are late.
MOST_CONNECTIONS = 8
# Whoever waits for an answer has left long before; this bounds how long a connection may be silent.
SILENT_SECONDS = 1.0
CLUSTER = "+cluster"
SCHEMES = ("redis", "rediss", "unix", f"redis{CLUSTER}", f"rediss{CLUSTER}")


class RedisClient:
    """A few connections, made when they are first needed. It raises what goes wrong; `trouble_of` says what that is."""

    def __init__(self, url: str) -> None:
        """For the Redis at `url`; SettingsError if that cannot be read."""
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
        """The values of these keys, in order, None where there is none."""
        read = self._client.mget_nonatomic if self._is_cluster else self._client.mget
        return cast(list[object], await read(keys))

    async def write(self, changes: Mapping[bytes, bytes | None], seconds: int) -> list[object]:
        """Set these, to expire after so many seconds (0: never), or delete them; answers an error where it failed."""
        pipeline = self._client.pipeline(transaction=False)
        for key, value in changes.items():
            if value is None:
                pipeline.delete(key)
            else:
                pipeline.set(key, value, ex=seconds or None)
        return cast(list[object], await pipeline.execute(raise_on_error=False))

    async def look(self, key: bytes) -> None:
        """See that it answers, every part of a cluster; a cluster that does not is found anew the next time."""
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


def trouble_of(error: object) -> CacheTrouble:
    """What an error of Redis, or of the way to it, means."""
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
    "max_connections": MOST_CONNECTIONS,
}


def _single(options: dict[str, Any]) -> Redis:
    pool: Any = ConnectionPool(**options, retry=Retry(NoBackoff(), 0))
    # Not connected: an option that there is none of is refused here, not at the first request.
    pool.make_connection()
    return Redis.from_pool(pool)


def _cluster(options: dict[str, Any]) -> RedisCluster:
    secure = options.pop("connection_class", None) is SSLConnection
    return RedisCluster(**options, ssl=secure, retry=Retry(NoBackoff(), 0))
