"""A cached vector as bytes for a store that others may write to: what is not whole, or not ours, is not believed."""

import struct
from hashlib import blake2b

import numpy as np

from likewise.embedding.cache import Cached

# The last digit is the version of the form: what another version wrote is unknown, not misread.
_MAGIC = b"lwv1"
# magic, flags, numbers in the vector, tokens, tokens cut off, characters read
_HEAD = struct.Struct("<4sBIIII")
_ESTIMATED = 1
_CHECK_BYTES = 8


def packed(key: bytes, item: Cached) -> bytes:
    """Counts, vector (float32, little-endian) and a check over them and the key."""
    head = _HEAD.pack(
        _MAGIC, _ESTIMATED * item.estimated, len(item.vector), item.tokens, item.truncated, item.chars_read
    )
    body = head + item.vector.astype("<f4", copy=False).tobytes()
    return body + _check(key, body)


def unpacked(key: bytes, value: object) -> Cached | None:
    """What was packed under this key; None if it is cut, changed, another key's, or has a number that is not finite."""
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
    """Against accidents, not against somebody who may write: everything that goes into it is known to them."""
    return blake2b(body, key=key, digest_size=_CHECK_BYTES).digest()
