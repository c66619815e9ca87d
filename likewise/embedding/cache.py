"""The contract of caches of vectors, their keys, and the tombstones of texts that must not be cached again."""

import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from likewise.digests import digests_of
from likewise.embedding.provider import Role, Vector

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
