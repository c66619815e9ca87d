"""The cache that processes share: vectors by digest in Redis, one server or a cluster. Needs the extra `redis`.

Redis may be slow, away, full or full of rubbish.
"""

import asyncio
import struct
from collections.abc import Mapping, Sequence
from contextvars import Context
from hashlib import blake2b
from typing import Any, cast

import numpy as np
from redis import exceptions
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from likewise.embedding.cache import Cached
from likewise.embedding.caches.traffic import CacheFault, Change, Known, StoreCircuit, StoreQuestions, StoreWrites
from likewise.errors import SettingsError
from likewise.observe import steps
from likewise.stopping import stop

PREFIX = b"likewise:vector:"
# The longest wait of a caller for an answer that takes a Redis on the same network less than 1 ms.
ANSWER_SECONDS = 0.010
# Where no request waits; less than the client gives a connection that is silent.
PATIENT_SECONDS = 0.9
CLOSE_SECONDS = 1.0
# Some 50,000 keys are deleted in one; a caller that deletes more has deleted them here, and goes on.
DELETE_SECONDS = 5.0

REASONS: dict[CacheFault, str] = {
    "away": "Redis cannot be reached; vectors are made anew.",
    "slow": "Redis does not answer in time; vectors are made anew.",
    "full": "Redis is full: it is read, and takes no new vectors.",
    "refused": "Redis refuses what it is asked; see its user, password and rights, and that it takes writes.",
}
# No text has this digest, as far as anybody knows.
_NOBODYS = PREFIX + bytes(32)

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


class RedisCache:
    """Vectors under `likewise:vector:` and 32 bytes of digest.

    Redis is asked with a deadline of some milliseconds, left out while it does not keep that, and written to in the
    background. So it costs a caller little, whatever its fault.
    """

    def __init__(self, url: str, *, seconds: int, answer_seconds: float) -> None:
        """Cache in the Redis at `url`; SettingsError if that cannot be read.

        Args:
            seconds: for which it keeps a vector; 0 is without limit.
            answer_seconds: the longest that an answer may take.
        """
        self._client = RedisClient(url)
        self._seconds = seconds
        self._circuit = StoreCircuit(lambda: self._client.look(_NOBODYS), fault_of, answer_seconds)
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
        asked = [key for key in dict.fromkeys(keys) if key not in self._writes.waiting]
        known = await self._questions.ask(asked) if asked and self._circuit.closed else {}
        found = [self._writes.waiting.get(key, known.get(key)) for key in keys]
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
        except (exceptions.RedisError, exceptions.RedisClusterException, ValueError, TypeError, OSError):
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
    if isinstance(error, exceptions.OutOfMemoryError):
        return "full"
    if isinstance(error, exceptions.TimeoutError | exceptions.MaxConnectionsError | TimeoutError):
        return "slow"
    if isinstance(error, exceptions.ClusterError):
        return "away"
    if isinstance(error, exceptions.AuthenticationError | exceptions.AuthorizationError | exceptions.ResponseError):
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
