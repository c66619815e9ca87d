"""A JWT as it arrives: one compact, canonical serialisation, and of its header just what decides who checks it.

Everything that a header could ask for beyond that is either refused or passed over: a key, or an address of one
(`jwk`, `jku`, `x5c`, `x5u`), is never looked at. It is read here, and not by the library that checks its signature,
since that takes a name that comes twice, and more than one spelling of the same bytes.
"""

import base64
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from likewise.cleaning import deeper_than

# Those of large organisations, with every role of a person, come to half of it.
MAX_CHARACTERS = 16 * 2**10
MAX_DEPTH = 32

_COMPACT = re.compile(r"([0-9A-Za-z_-]+)\.([0-9A-Za-z_-]+)\.([0-9A-Za-z_-]+)")
# They change what is signed, or what the claims are: extensions, detached, nested, encrypted or compressed content.
_REFUSED = frozenset({"crit", "b64", "cty", "enc", "zip"})
# RFC 7519, section 5.1, and RFC 9068, section 2.1; an ID token of OpenID Connect has the first one too.
_TYPES = frozenset({"jwt", "at+jwt"})

# As likewise_tokens_refused_total counts them.
Reason = Literal[
    "malformed", "header", "algorithm", "claims", "time", "audience", "issuer", "tenant", "scopes", "key", "signature"
]


class BadToken(Exception):
    """A refused token. The reason is for metrics and for logs at `debug`: whoever sent it learns nothing else."""

    def __init__(self, reason: Reason) -> None:
        self.reason: Reason = reason
        super().__init__(reason)


@dataclass(frozen=True)
class Jwt:
    """A token that can be read, and that nobody has checked as yet."""

    algorithm: str
    kid: str | None
    claims: Mapping[str, Any] = field(repr=False)
    signed: bytes = field(repr=False)
    signature: bytes = field(repr=False)


def read(token: str, algorithms: Collection[str]) -> Jwt:
    """Return the parts of a token whose header names one of these algorithms; BadToken if it is none."""
    found = _COMPACT.fullmatch(token) if len(token) <= MAX_CHARACTERS else None
    if found is None:
        raise BadToken("malformed")
    raw_header, raw_claims, signature = map(_decoded, found.groups())
    try:
        header, claims = strict_object(raw_header), strict_object(raw_claims)
    except ValueError:
        raise BadToken("malformed") from None
    _check_header(header, algorithms)
    return Jwt(header["alg"], header.get("kid"), claims, f"{found[1]}.{found[2]}".encode(), signature)


def strict_object(raw: bytes) -> dict[str, Any]:
    """Read a JSON object that has one reading; ValueError if it is none, is 33 deep, or names something twice.

    NaN and infinities are no JSON. A number beyond a double comes as an infinity, which whoever wants a number refuses.
    """
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_distinct, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict) or deeper_than(value, MAX_DEPTH):
        raise ValueError("no object, or nested too deeply")
    return value


def _check_header(header: Mapping[str, Any], algorithms: Collection[str]) -> None:
    algorithm, kind, kid = header.get("alg"), header.get("typ", "JWT"), header.get("kid", "absent")
    if not isinstance(algorithm, str) or algorithm not in algorithms:
        raise BadToken("algorithm")
    if not _REFUSED.isdisjoint(header) or not isinstance(kid, str):
        raise BadToken("header")
    if not isinstance(kind, str) or kind.lower().removeprefix("application/") not in _TYPES:
        raise BadToken("header")


def _decoded(part: str) -> bytes:
    """Read base64url without padding, in the one way that there is to write it."""
    try:
        raw = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError:
        raise BadToken("malformed") from None
    if base64.urlsafe_b64encode(raw).rstrip(b"=") != part.encode():
        raise BadToken("malformed")
    return raw


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    named = dict(pairs)
    if len(named) != len(pairs):
        raise ValueError("a name comes twice")
    return named


def _refuse(_: str) -> None:
    raise ValueError("no number")
