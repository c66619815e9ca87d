"""SHA-256 over several parts."""

import hashlib
from collections.abc import Iterable


def digest_of(parts: Iterable[str | bytes]) -> bytes:
    """32 bytes that no other list of parts has: each part goes in after its length. Text counts as UTF-8."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(4, "big"))
        digest.update(raw)
    return digest.digest()
