"""The keys that signatures of tokens are checked with: those that an issuer publishes (RFC 7517), or one secret."""

import base64
import hashlib
import re
import time
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import ECKey, Key, KeySet, OctKey, RSAKey

from likewise.auth.caller import Scope
from likewise.auth.jwt import strict_object
from likewise.errors import SettingsError

DEVELOPMENT_ALGORITHM = "HS256"
MAX_KEYS = 100
# NIST SP 800-131A wants the first; checking with more than the second would cost a request milliseconds.
MIN_RSA_BITS, MAX_RSA_BITS = 2_048, 8_192
MAX_EXPONENT_BITS = 32
COORDINATE_BITS = 256

# Long enough for the largest number that is taken.
_NUMBER = re.compile(r"[0-9A-Za-z_-]{1,1400}")
_MEMBERS = ("kty", "kid", "alg", "use", "key_ops", "n", "e", "crv", "x", "y")
_ALGORITHMS = {"RSA": "RS256", "EC": "ES256"}

VerificationKey = RSAKey | ECKey | OctKey


class DevelopmentSecret:
    """The one key of `LIKEWISE_AUTH=dev`; SettingsError if it is a public key, which others know."""

    version = 0
    fault = None

    def __init__(self, secret: str) -> None:
        try:
            self._key = OctKey.import_key(secret.encode())
        except ValueError:
            words = "it is a public key, which others know; `openssl rand -hex 32` makes a secret"
            raise SettingsError(f"LIKEWISE_DEV_JWT_SECRET: {words}.") from None

    async def key(self, algorithm: str, kid: str | None) -> OctKey:
        """Return the key, whatever a token calls it."""
        return self._key

    async def newer(self, algorithm: str) -> None:
        """Return None: there is one secret, for as long as the process lives."""

    def fetch_ahead(self) -> None:
        """Do nothing: it is here."""

    async def close(self) -> None:
        """Do nothing: it holds nothing."""

    def token(self, tenant: str, claim: str, scopes: Collection[Scope], seconds: float | None) -> str:
        """Sign a token for a tenant, named in a claim; it ends after so many seconds, or never."""
        now = int(time.time())
        claims = {"iat": now, claim: tenant, "scope": " ".join(sorted(scopes))}
        if seconds is not None:
            claims["exp"] = now + int(seconds)
        return jwt.encode({"alg": DEVELOPMENT_ALGORITHM}, claims, self._key, algorithms=[DEVELOPMENT_ALGORITHM])


@dataclass(frozen=True)
class PublishedKeys:
    """The public keys of an issuer that may check a signature, by algorithm; `digest` is that of the document.

    Of two keys with the same algorithm and `kid` the first counts.
    """

    digest: bytes
    by_algorithm: Mapping[str, KeySet] = field(repr=False)

    @property
    def usable(self) -> int:
        """The number of keys."""
        return sum(len(keys.keys) for keys in self.by_algorithm.values())

    def find(self, algorithm: str, kid: str | None) -> VerificationKey | None:
        """Return the key that a token names, or the only one of its algorithm if it names none; None if none fits."""
        try:
            return self.by_algorithm[algorithm].get_by_kid(kid)  # type: ignore[return-value]
        except (KeyError, InvalidKeyIdError):
            return None


def published_keys(document: bytes) -> PublishedKeys:
    """Read a JWK Set; ValueError if it is none. A key that may not or cannot be used is passed over."""
    listed = strict_object(document).get("keys")
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise ValueError("no keys, or too many")
    usable: defaultdict[str, list[Key]] = defaultdict(list)
    for jwk in listed:
        if isinstance(jwk, dict) and (key := _key(jwk)) is not None:
            usable[_ALGORITHMS[key.key_type]].append(key)
    keys = {algorithm: KeySet(keys) for algorithm, keys in usable.items()}
    return PublishedKeys(hashlib.sha256(document).digest(), keys)


def _key(jwk: Mapping[str, Any]) -> RSAKey | ECKey | None:
    # A symmetric key is none that others may know, and one whose private half is told is nobody's any more.
    kind = jwk.get("kty")
    if kind not in ("RSA", "EC") or "d" in jwk:
        return None
    # What else a key has, such as certificates, is for others; a name that is null is none.
    known = {name: jwk[name] for name in _MEMBERS if name in jwk and (name, jwk[name]) != ("kid", None)}
    try:
        key = _rsa(known) if kind == "RSA" else _ec(known)
        key.check_alg(_ALGORITHMS[kind])
        key.check_use("sig")
        key.check_key_op("verify")
    except (JoseError, ValueError, TypeError, KeyError, ArithmeticError):
        return None
    return key


def _rsa(jwk: dict[str, Any]) -> RSAKey:
    if not MIN_RSA_BITS <= _bits(jwk["n"]) <= MAX_RSA_BITS or _bits(jwk["e"]) > MAX_EXPONENT_BITS:
        raise ValueError("a modulus or an exponent that nobody should use")
    return RSAKey.import_key(jwk)


def _ec(jwk: dict[str, Any]) -> ECKey:
    if jwk["crv"] != "P-256" or max(_bits(jwk["x"]), _bits(jwk["y"])) > COORDINATE_BITS:
        raise ValueError("another curve, or a point outside it")
    return ECKey.import_key(jwk)


def _bits(number: object) -> int:
    if not isinstance(number, str) or not _NUMBER.fullmatch(number):
        raise ValueError("no number, or too large a one")
    return int.from_bytes(base64.urlsafe_b64decode(number + "=" * (-len(number) % 4)), "big").bit_length()
