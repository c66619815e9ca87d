"""A JWT as it arrives: one compact, canonical serialisation, and of its header just what decides who checks it.

Everything that a header could ask for beyond that is either refused or passed over: a key, or an address of one
(`jwk`, `jku`, `x5c`, `x5u`), is never looked at.
"""

import base64
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from likewise.auth.bad_token import BadToken
from likewise.auth.strict_json import strict_object

# Those of large organisations, with every role of a person, come to half of it.
MOST_CHARACTERS = 16 * 2**10

_COMPACT = re.compile(r"([0-9A-Za-z_-]+)\.([0-9A-Za-z_-]+)\.([0-9A-Za-z_-]+)")
# They change what is signed, or what the claims are: extensions, detached, nested, encrypted or compressed content.
_REFUSED = frozenset({"crit", "b64", "cty", "enc", "zip"})
# RFC 7519, section 5.1, and RFC 9068, section 2.1; an ID token of OpenID Connect has the first one too.
_TYPES = frozenset({"jwt", "at+jwt"})


@dataclass(frozen=True)
class Jwt:
    """A token that can be read, and that nobody has checked as yet."""

    algorithm: str
    kid: str | None
    claims: Mapping[str, Any] = field(repr=False)
    signed: bytes = field(repr=False)
    signature: bytes = field(repr=False)


def read(token: str, algorithms: Collection[str]) -> Jwt:
    """The parts of a token whose header names one of these algorithms; BadToken if it is none."""
    found = _COMPACT.fullmatch(token) if len(token) <= MOST_CHARACTERS else None
    if found is None:
        raise BadToken("malformed")
    header, claims, signature = map(_decoded, found.groups())
    try:
        named, claimed = strict_object(header), strict_object(claims)
    except ValueError:
        raise BadToken("malformed") from None
    _check_header(named, algorithms)
    return Jwt(named["alg"], named.get("kid"), claimed, f"{found[1]}.{found[2]}".encode(), signature)


def _check_header(header: Mapping[str, Any], algorithms: Collection[str]) -> None:
    algorithm, kind, kid = header.get("alg"), header.get("typ", "JWT"), header.get("kid", "absent")
    if not isinstance(algorithm, str) or algorithm not in algorithms:
        raise BadToken("algorithm")
    if not _REFUSED.isdisjoint(header) or not isinstance(kid, str):
        raise BadToken("header")
    if not isinstance(kind, str) or kind.lower().removeprefix("application/") not in _TYPES:
        raise BadToken("header")


def _decoded(part: str) -> bytes:
    """Base64url without padding, in the one way that there is to write it."""
    try:
        raw = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError:
        raise BadToken("malformed") from None
    if base64.urlsafe_b64encode(raw).rstrip(b"=") != part.encode():
        raise BadToken("malformed")
    return raw
