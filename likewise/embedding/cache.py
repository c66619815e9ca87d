"""The contract of caches of vectors, and their keys."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from likewise.digests import digests_of
from likewise.embedding.provider import Role, Vector


@dataclass(frozen=True)
class Cached:
    """One text's vector, float32 (d,), and its counts; `estimated` where nobody counted its tokens."""

    vector: Vector
    tokens: int
    truncated: int
    chars_read: int
    estimated: bool = False


class Cache(Protocol):
    """Remembers vectors by digest; it never sees a text. A cache that fails answers None, it does not raise."""

    @property
    def memory_bytes(self) -> int:
        """What it holds in this process's memory."""
        ...

    @property
    def fault(self) -> str | None:
        """Why it is, or a part of it, left out at present."""
        ...

    def start(self) -> None:
        """Begin what it does in the background; a cache that is used before does so itself."""
        ...

    async def close(self) -> None:
        """End that, with a moment for what is not written yet."""
        ...

    async def get_many(self, keys: Sequence[bytes]) -> list[Cached | None]:
        """What is known of each key, in order."""
        ...

    async def put_many(self, items: Mapping[bytes, Cached]) -> None:
        """Remember these."""
        ...

    async def delete_many(self, keys: Sequence[bytes], *, at_once: bool = False) -> None:
        """Forget these: nobody gets them from here any more.

        Args:
            at_once: whether to wait a moment until those who share a store do not get them either.
        """
        ...

    async def clear(self) -> None:
        """Forget all that this process holds; what others share stays."""
        ...


def cache_key(tenant: int | None, space: str, numerics: str, role: Role, dimension: int, text: str) -> bytes:
    """The key of one text: 32 bytes over everything that decides its vector, and whose it is (None: everybody's)."""
    return cache_keys(tenant, space, numerics, role, dimension, [text_digest(text)])[0]


def cache_keys(
    tenant: int | None, space: str, numerics: str, role: Role, dimension: int, text_digests: Iterable[bytes]
) -> list[bytes]:
    """The keys of texts by their digests: to forget a text nobody needs to have it."""
    owner = "shared" if tenant is None else f"tenant {tenant}"
    return digests_of((owner, space, numerics, role, str(dimension)), text_digests)


def text_digest(text: str) -> bytes:
    """SHA-256 of a text; of one that can be stored it is the key of its content as well."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
