"""Credentials as they arrive and as they are made: `lw_<prefix>_<secret>`."""

import hashlib
import re
import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass, field

PREFIX_LENGTH = 10
# Base 62: 43 characters hold 256 bits.
SECRET_LENGTH = 43

_ALPHABET = string.digits + string.ascii_letters
_KEY = re.compile(rf"lw_([0-9A-Za-z]{{{PREFIX_LENGTH}}})_[0-9A-Za-z]{{{SECRET_LENGTH}}}")
_BEARER = re.compile(r"bearer +([!-~]+)", re.IGNORECASE)


@dataclass(frozen=True)
class NewKey:
    """A key that was just made; `token` is what its holder shows, and is kept nowhere."""

    prefix: str
    token: str = field(repr=False)


def new_key() -> NewKey:
    """A key of 256 random bits."""
    prefix = "".join(secrets.choice(_ALPHABET) for _ in range(PREFIX_LENGTH))
    secret = "".join(secrets.choice(_ALPHABET) for _ in range(SECRET_LENGTH))
    return NewKey(prefix, f"lw_{prefix}_{secret}")


def prefix_of(token: str) -> str | None:
    """The part of a key that may be shown and that finds its row; None if this is not a key."""
    found = _KEY.fullmatch(token)
    return found[1] if found else None


def digest_of(token: str) -> bytes:
    """SHA-256. A slow hash is for what people think up: nobody tries 2^256 keys, however fast each try is."""
    return hashlib.sha256(token.encode()).digest()


def token_of(authorization: Sequence[str], api_key: Sequence[str]) -> str | None:
    """The one credential in the `Authorization: Bearer` and `X-API-Key` headers of a request.

    None if there is none, or if there are two that differ. A scheme other than Bearer is for somebody before us.
    """
    bearers = (_BEARER.fullmatch(value.strip()) for value in authorization)
    tokens = {*(found[1] for found in bearers if found), *(value.strip() for value in api_key if value.strip())}
    return tokens.pop() if len(tokens) == 1 else None
