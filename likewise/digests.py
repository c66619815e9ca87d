"""SHA-256 over several parts."""

import hashlib
from collections.abc import Iterable


def digest_of(parts: Iterable[str | bytes]) -> bytes:
    """Return 32 bytes that no other list of parts has: each part goes in after its length. Text counts as UTF-8."""
    return _begun(parts).digest()


def digests_of(parts: Iterable[str | bytes], last_ones: Iterable[bytes]) -> list[bytes]:
    """Return the digest of the parts and each last one; the parts are read once."""
    begun = _begun(parts)
    digests = []
    for last in last_ones:
        digest = begun.copy()
        digest.update(len(last).to_bytes(4, "big") + last)
        digests.append(digest.digest())
    return digests


def _begun(parts: Iterable[str | bytes]) -> "hashlib._Hash":
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(4, "big"))
        digest.update(raw)
    return digest
