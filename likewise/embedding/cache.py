"""The contract of caches of vectors, and their keys."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from likewise.digests import digest_of
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

    async def delete_many(self, keys: Sequence[bytes]) -> None:
        """Forget these."""
        ...


def cache_key(tenant: int | None, space: str, numerics: str, role: Role, dimension: int, text: str) -> bytes:
    """The key of one text: 32 bytes over everything that decides its vector, and whose it is (None: everybody's)."""
    owner = "shared" if tenant is None else f"tenant {tenant}"
    text_digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return digest_of((owner, space, numerics, role, str(dimension), text_digest))
