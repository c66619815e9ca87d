"""Sealing: texts that are not kept, encrypted for the time that they wait (AES-256-GCM)."""

import base64
import binascii
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING

from likewise.errors import SealBroken, TextKeyUnavailable

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

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
        self._key = key

    @cached_property
    def _cipher(self) -> "AESGCM":
        # Imported here: it takes 11 ms of a start, and most processes never seal anything.
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

        return AESGCM(self._key)

    def seal(self, text: bytes, about: bytes) -> bytes:
        """Encrypt a text: the id of the key, a random nonce, and the text; it opens only for the same `about`."""
        nonce = os.urandom(NONCE_BYTES)
        return self.id + nonce + self._cipher.encrypt(nonce, text, about)

    def unseal(self, sealed: bytes, about: bytes) -> bytes:
        """Open what was sealed; SealBroken if it is of another key, about something else, or changed."""
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415

        nonce, text = sealed[ID_BYTES : ID_BYTES + NONCE_BYTES], sealed[ID_BYTES + NONCE_BYTES :]
        try:
            return self._cipher.decrypt(nonce, text, about)
        except (InvalidTag, ValueError):
            raise SealBroken from None

    def __repr__(self) -> str:
        return f"TextKey({self.id.hex()})"


class Sealing:
    """The key that this process seals with, and the others that it can open what was sealed with."""

    def __init__(self, keys: Sequence[TextKey], look_again: Callable[[], Sequence[TextKey]] = tuple) -> None:
        """Seal with the first of these keys; as long as there is none, nothing can be sealed.

        Args:
            look_again: brings the keys that are at hand by now; it is asked where one is wanted that is not known.
        """
        self._keys = {key.id: key for key in reversed(keys)}
        self._look_again = look_again
        self._current = keys[0] if keys else None

    @property
    def current(self) -> TextKey:
        """The key that is sealed with."""
        if self._current is None:
            raise TextKeyUnavailable
        return self._current

    def switch(self, key_id: bytes) -> bool:
        """Seal with that key from now on; False if it cannot be had."""
        key = self._key(key_id)
        if key is not None:
            self._current = key
        return key is not None

    def seal(self, text: str, about: bytes) -> bytes:
        """Encrypt a text; `about` says whose and what it is, so that it cannot be put in another's place."""
        return self.seal_bytes(text.encode("utf-8", "surrogatepass"), about)

    def unseal(self, sealed: bytes, about: bytes) -> str:
        """Open a text; TextKeyUnavailable if this process cannot have its key, SealBroken if it is about another."""
        return self.unseal_bytes(sealed, about).decode("utf-8", "surrogatepass")

    def seal_bytes(self, plain: bytes, about: bytes) -> bytes:
        """Encrypt bytes; `about` says whose and what they are."""
        return self.current.seal(plain, about)

    def unseal_bytes(self, sealed: bytes, about: bytes) -> bytes:
        """Open what `seal_bytes` sealed."""
        key = self._key(sealed[:ID_BYTES])
        if key is None:
            raise TextKeyUnavailable
        return key.unseal(sealed, about)

    def _key(self, key_id: bytes) -> TextKey | None:
        if key_id not in self._keys:
            self._keys.update({key.id: key for key in self._look_again()})
        return self._keys.get(key_id)


def key_from_base64(written: str) -> TextKey:
    """Read a key from base64; ValueError if that is none."""
    try:
        return TextKey(base64.b64decode(written, validate=True))
    except binascii.Error:
        raise ValueError("a text key is written in base64") from None


def new_key() -> str:
    """Make a random key in base64."""
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()


def about_content(tenant: int, collection: int, text_hash: bytes) -> bytes:
    """Return what a content's sealed text is bound to."""
    return b"content %d %d " % (tenant, collection) + text_hash


def about_job(tenant: int, job: bytes) -> bytes:
    """Return what a task's sealed input is bound to."""
    return b"job %d " % tenant + job


def about_collection(tenant: int, name: str) -> bytes:
    """Return what a collection's sealed key of terms is bound to."""
    return b"collection %d " % tenant + name.encode()
