"""The contract of caches of vectors, their keys, and a cache of tenants' vectors.

Forgotten texts stay forgotten there, also where somebody embeds them meanwhile.
"""

import asyncio
import contextlib
import hashlib
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, get_args

from likewise.digests import digests_of
from likewise.embedding.provider import Role, Vector

# Of a row in memory: its key, its place in a dictionary and the objects around the vector, measured with tracemalloc.
OVERHEAD = 400
ROLES: tuple[Role, ...] = get_args(Role)
# Texts that are forgotten at a time, and how long Redis is waited for, over all of them.
FORGET_BATCH, FORGET_SECONDS = 1_000, 5.0
# Beyond so many, all texts count as forgotten for the calls that run: 20 MB.
MAX_TOMBSTONES = 100_000


@dataclass(frozen=True)
class Cached:
    """One text's vector, float32 (d,), and its counts; `estimated` where nobody counted its tokens."""

    vector: Vector
    tokens: int
    truncated: int
    chars_read: int
    estimated: bool = False

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory that it takes with its key."""
        return self.vector.nbytes + OVERHEAD


class Cache(Protocol):
    """A store of vectors by digest, which never sees a text. A cache that fails answers None, it does not raise."""

    @property
    def memory_bytes(self) -> int:
        """Bytes that it holds in this process's memory."""
        ...

    @property
    def fault(self) -> str | None:
        """The reason for which it, or a part of it, is left out at present."""
        ...

    def start(self) -> None:
        """Begin work in the background; a cache that is used before begins by itself."""
        ...

    async def close(self) -> None:
        """End work in the background, with a moment for what is not written yet."""
        ...

    async def get_many(self, keys: Sequence[bytes]) -> list[Cached | None]:
        """Return the row of each key in order, None where there is none."""
        ...

    async def put_many(self, items: Mapping[bytes, Cached]) -> None:
        """Remember these rows."""
        ...

    async def delete_many(self, keys: Sequence[bytes], *, at_once: bool = False) -> None:
        """Forget these keys: nobody gets their rows from here any more.

        Args:
            at_once: whether to wait a moment until other processes on a shared store do not get them either.
        """
        ...

    async def clear(self) -> None:
        """Forget all that this process holds; a shared store keeps its rows."""
        ...


@dataclass(frozen=True)
class VectorOrigin:
    """The model, its arithmetic and its dimension, which decide a vector beside the text and its role."""

    space: str
    numerics: str
    dimension: int

    def keys(self, owner: int | None, role: Role, text_digests: Iterable[bytes]) -> list[bytes]:
        """Return the cache keys of texts by their digests: nobody needs to have a text to forget it.

        A key is 32 bytes over everything that decides a vector, and over its owner (None: shared by all tenants).
        """
        tenant = "shared" if owner is None else f"tenant {owner}"
        return digests_of((tenant, self.space, self.numerics, role, str(self.dimension)), text_digests)


def cache_key(tenant: int | None, space: str, numerics: str, role: Role, dimension: int, text: str) -> bytes:
    """Return the cache key of one text."""
    return VectorOrigin(space, numerics, dimension).keys(tenant, role, [text_digest(text)])[0]


def text_digest(text: str) -> bytes:
    """Return the SHA-256 of a text, which is the key of its content as well, if it can be stored."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True)
class CacheLookup:
    """The cache keys of one call's texts in order, and the digest of each key's text.

    Texts that were forgotten `since` then are not cached by the call.
    """

    keys: Sequence[bytes]
    digest_of: Mapping[bytes, bytes]
    owner: int | None
    dimension: int
    since: int


class TenantCache:
    """A cache of vectors under the keys of their tenants, or of all tenants together where it is `shared`."""

    def __init__(self, cache: Cache, *, shared: bool) -> None:
        self.cache = cache
        self._shared = shared
        self._tombstones = Tombstones()
        # Of vectors that this process made: the cache may have them long after their model was let go.
        self._origins: set[VectorOrigin] = set()
        self.watched = self._tombstones.watched

    def lookup(self, tenant: int, texts: Sequence[str], role: Role, origin: VectorOrigin, *, since: int) -> CacheLookup:
        """Return the keys of texts whose vectors have that origin."""
        self._origins.add(origin)
        owner = None if self._shared else tenant
        digests = [text_digest(text) for text in texts]
        keys = origin.keys(owner, role, digests)
        digest_of = dict(zip(keys, digests, strict=True))
        return CacheLookup(keys, digest_of, owner, origin.dimension, since)

    async def get(self, lookup: CacheLookup) -> dict[bytes, Cached]:
        """Return the rows that there are, by key."""
        found = await self.cache.get_many(lookup.keys)
        if gone := self._gone(lookup):
            # Rows that came from Redis meanwhile are in memory since.
            await self.cache.delete_many(list(gone))
        # Whoever may write to a shared cache may put vectors of another length there.
        rows = zip(lookup.keys, found, strict=True)
        return {key: row for key, row in rows if row and len(row.vector) == lookup.dimension}

    async def put(self, lookup: CacheLookup, rows: Mapping[bytes, Cached]) -> None:
        """Remember rows of a lookup, but those of texts that were forgotten since it began."""
        gone = self._gone(lookup)
        await self.cache.put_many({key: row for key, row in rows.items() if key not in gone})

    async def forget(
        self, tenant: int, text_hashes: Sequence[bytes], *, at_once: bool = False, origin: VectorOrigin | None = None
    ) -> None:
        """Remove a tenant's texts by their SHA-256; arguments are those of `Embedder.forget`."""
        owner = None if self._shared else tenant
        self._tombstones.add(owner, text_hashes)
        origins = self._origins if origin is None else self._origins | {origin}
        ends = time.monotonic() + FORGET_SECONDS
        for start in range(0, len(text_hashes) if origins else 0, FORGET_BATCH):
            part = text_hashes[start : start + FORGET_BATCH]
            keys = [key for one in origins for role in ROLES for key in one.keys(owner, role, part)]
            await self.cache.delete_many(keys, at_once=at_once and time.monotonic() < ends)
            # The keys of a thousand texts take some milliseconds.
            await asyncio.sleep(0)

    async def forget_all(self) -> None:
        """Remove everything from this process's memory."""
        self._tombstones.add_all()
        await self.cache.clear()

    def _gone(self, lookup: CacheLookup) -> Collection[bytes]:
        """Return the keys of texts that were forgotten since the lookup began."""
        gone = self._tombstones.among(lookup.owner, lookup.digest_of.values(), lookup.since)
        return {key for key, digest in lookup.digest_of.items() if digest in gone} if gone else ()


class Tombstones:
    """Texts that were forgotten while somebody embedded them, and must not be cached again by that.

    A tombstone stays until all calls have ended that had begun before it. So none are kept while nobody embeds, and a
    text that is sent again after it was forgotten is cached again.
    """

    def __init__(self) -> None:
        self._now = 0
        self._began: dict[int, None] = {}
        # By owner and digest, the oldest first.
        self._moments: OrderedDict[tuple[int | None, bytes], int] = OrderedDict()
        self._all = 0

    @contextlib.contextmanager
    def watched(self) -> Iterator[int]:
        """Yield the moment from which on the block is told of forgotten texts."""
        self._now += 1
        since = self._now
        self._began[since] = None
        try:
            yield since
        finally:
            del self._began[since]
            self._trim()

    def add(self, owner: int | None, digests: Sequence[bytes]) -> None:
        """Forget texts from now on."""
        if not self._began:
            return
        self._now += 1
        for digest in digests:
            self._moments[owner, digest] = self._now
            self._moments.move_to_end((owner, digest))
        if len(self._moments) > MAX_TOMBSTONES:
            self.add_all()

    def add_all(self) -> None:
        """Forget all texts from now on."""
        self._now += 1
        self._all = self._now
        self._moments.clear()

    def among(self, owner: int | None, digests: Iterable[bytes], since: int) -> set[bytes]:
        """Return the digests that were forgotten since a moment."""
        if self._all > since:
            return set(digests)
        if not self._moments:
            return set()
        return {one for one in digests if self._moments.get((owner, one), 0) > since}

    def _trim(self) -> None:
        """Drop the tombstones from before the earliest call that still runs."""
        earliest = next(iter(self._began), self._now + 1)
        while self._moments:
            key = next(iter(self._moments))
            if self._moments[key] > earliest:
                return
            del self._moments[key]
