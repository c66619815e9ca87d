"""Keys of an issuer (RFC 7517): those of a set that may check a signature of ours, and no other."""

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from likewise.auth.strict_json import strict_object

MOST_KEYS = 100
# NIST SP 800-131A wants the first; checking with more than the second would cost a request milliseconds.
LEAST_RSA_BITS, MOST_RSA_BITS = 2_048, 8_192
MOST_EXPONENT_BITS = 32

# Long enough for the largest number that is taken.
_NUMBER = re.compile(r"[0-9A-Za-z_-]{1,1400}")

Key = RSAKey | ECKey


@dataclass(frozen=True)
class KeySet:
    """The public keys of an issuer, each with the algorithm and the `kid` that it goes by; `digest` is the document's.

    Of two keys with the same of both the first counts.
    """

    digest: bytes
    keys: tuple[tuple[str, str | None, Key], ...] = field(repr=False)

    def find(self, algorithm: str, kid: str | None) -> Key | None:
        """The key that a token names, or the only one of its algorithm if it names none; None if there is none."""
        fitting = [(name, key) for of, name, key in self.keys if of == algorithm]
        if kid is None:
            return fitting[0][1] if len(fitting) == 1 else None
        return next((key for name, key in fitting if name == kid), None)


def keys_of(document: bytes) -> KeySet:
    """The keys of a JWK Set; ValueError if it is none. A key that may not or cannot be used is passed over."""
    listed = strict_object(document).get("keys")
    if not isinstance(listed, list) or len(listed) > MOST_KEYS:
        raise ValueError("no keys, or too many")
    taken = [taken for one in listed if isinstance(one, dict) and (taken := _taken(one)) is not None]
    return KeySet(hashlib.sha256(document).digest(), tuple(taken))


def _taken(jwk: Mapping[str, Any]) -> tuple[str, str | None, Key] | None:
    # A symmetric key is none that others may know, and one whose private half is told is nobody's any more.
    kind, kid = jwk.get("kty"), jwk.get("kid")
    rules = _KINDS.get(kind) if isinstance(kind, str) and "d" not in jwk else None
    if rules is None or not isinstance(kid, str | None):
        return None
    algorithm, make = rules
    if not _may_check(jwk, algorithm):
        return None
    try:
        return algorithm, kid, make(jwk)
    except (JoseError, ValueError, TypeError, KeyError, ArithmeticError):
        return None


def _may_check(jwk: Mapping[str, Any], algorithm: str) -> bool:
    operations = jwk.get("key_ops", ["verify"])
    return (
        jwk.get("alg", algorithm) == algorithm
        and jwk.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
    )


def _rsa(jwk: Mapping[str, Any]) -> RSAKey:
    modulus, exponent = _number(jwk["n"]), _number(jwk["e"])
    if not LEAST_RSA_BITS <= _bits(modulus) <= MOST_RSA_BITS or _bits(exponent) > MOST_EXPONENT_BITS:
        raise ValueError("a modulus or an exponent that nobody should use")
    return RSAKey.import_key({"kty": "RSA", "n": modulus, "e": exponent})


def _ec(jwk: Mapping[str, Any]) -> ECKey:
    if jwk["crv"] != "P-256":
        raise ValueError("another curve")
    return ECKey.import_key({"kty": "EC", "crv": "P-256", "x": _number(jwk["x"]), "y": _number(jwk["y"])})


def _number(value: object) -> str:
    if not isinstance(value, str) or not _NUMBER.fullmatch(value):
        raise ValueError("no number, or too large a one")
    return value


def _bits(number: str) -> int:
    return int.from_bytes(base64.urlsafe_b64decode(number + "=" * (-len(number) % 4)), "big").bit_length()


_KINDS: dict[str, tuple[str, Callable[[Mapping[str, Any]], Key]]] = {"RSA": ("RS256", _rsa), "EC": ("ES256", _ec)}
