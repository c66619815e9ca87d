"""Sealing: texts that are not kept, encrypted for the time that they wait (AES-256-GCM)."""

import os
from collections.abc import Sequence
from hashlib import sha256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from likewise.errors import SealBroken, TextKeyUnavailable

KEY_BYTES = 32
# A digest of the key, which tells which one a text is sealed with and nothing of the key itself.
ID_BYTES = 8
NONCE_BYTES = 12


class TextKey:
    """A key of 256 bits."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a text key has {KEY_BYTES} bytes")
        self.id = sha256(b"likewise text key\0" + key).digest()[:ID_BYTES]
        self._cipher = AESGCM(key)

    def seal(self, text: bytes, about: bytes) -> bytes:
        """The id of the key, a random nonce, and the text encrypted; it opens only for the same `about`."""
        nonce = os.urandom(NONCE_BYTES)
        return self.id + nonce + self._cipher.encrypt(nonce, text, about)

    def unseal(self, sealed: bytes, about: bytes) -> bytes:
        """What was sealed. SealBroken if it is of another key, about something else, or changed."""
        nonce, text = sealed[ID_BYTES : ID_BYTES + NONCE_BYTES], sealed[ID_BYTES + NONCE_BYTES :]
        try:
            return self._cipher.decrypt(nonce, text, about)
        except (InvalidTag, ValueError):
            raise SealBroken from None

    def __repr__(self) -> str:
        return f"TextKey({self.id.hex()})"


class Sealing:
    """The key that this process seals with, and those before it that it can still open."""

    def __init__(self, keys: Sequence[TextKey]) -> None:
        """Seal with the first of these keys."""
        self._keys = {key.id: key for key in reversed(keys)}
        self.current = keys[0]

    def seal(self, text: str, about: bytes) -> bytes:
        """A text encrypted; `about` says whose and what it is, so that it cannot be put in another's place."""
        return self.current.seal(text.encode("utf-8", "surrogatepass"), about)

    def unseal(self, sealed: bytes, about: bytes) -> str:
        """The text; TextKeyUnavailable if this process has not its key, SealBroken if it was sealed about another."""
        key = self._keys.get(sealed[:ID_BYTES])
        if key is None:
            raise TextKeyUnavailable
        return key.unseal(sealed, about).decode("utf-8", "surrogatepass")


def about_content(tenant: int, collection: int, text_hash: bytes) -> bytes:
    """What a content's sealed text is bound to."""
    return b"content %d %d " % (tenant, collection) + text_hash


def about_job(tenant: int, job: bytes) -> bytes:
    """What a task's sealed input is bound to."""
    return b"job %d " % tenant + job


def about_collection(tenant: int, name: str) -> bytes:
    """What a collection's sealed key of terms is bound to."""
    return b"collection %d " % tenant + name.encode()
