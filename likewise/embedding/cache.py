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
