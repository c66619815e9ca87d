"""A JWT as it arrives, read: what its header says of who checks it, and what its claims grant, and for how long.

It is one compact, canonical serialisation. Everything else that a header could ask for is either refused or passed
over: a key, or an address of one (`jwk`, `jku`, `x5c`, `x5u`), is never looked at. It is read here, and not by the
library that checks its signature, since that takes a name that comes twice, and more than one spelling of the same
bytes.
"""

import base64
import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from joserfc.errors import ClaimError
from joserfc.jwt import ClaimsOption, JWTClaimsRegistry

from likewise.auth.caller import Scope, is_name
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

# Between the issuer's clock and ours.
LEEWAY_SECONDS = 30
# The end of the year 9999. What is later was meant in milliseconds, or for ever.
LAST_SECOND = 253_402_300_799

# RFC 8693 has the first; some issuers write one of the others.
SCOPE_CLAIMS = ("scope", "scopes", "scp")

_TIMES = ("exp", "nbf", "iat")
_REASON_OF: dict[str, Reason] = {"iss": "issuer", "aud": "audience"}


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


@dataclass(frozen=True)
class TokenRules:
    """The rules for the tokens of one kind.

    Attributes:
        algorithms: one of these has signed it.
        audience: `aud` names it; None if nobody asks.
        issuer: `iss` is this; None if nobody asks.
        needs_end: whether it must have an `exp`.
        tenant_claim: the claim that names the tenant, or a path of names with dots between.
        default_scopes: what it allows if it names no scope of ours.
    """

    algorithms: frozenset[str]
    audience: str | None
    issuer: str | None
    needs_end: bool
    tenant_claim: str
    default_scopes: frozenset[Scope]


@dataclass(frozen=True)
class Grant:
    """A tenant by name, the scopes there, and the end of both in seconds since 1970."""

    tenant: str
    scopes: frozenset[Scope]
    until: float


def grant_of(claims: Mapping[str, Any], rules: TokenRules, now: float) -> Grant:
    """Return what these claims grant, if they are signed; BadToken if nothing."""
    _check_claims(claims, rules, now)
    if "cnf" in claims:
        # It belongs to a key that its sender would have to prove, and so may not be taken from just anybody.
        raise BadToken("claims")
    tenant, scopes = _tenant(claims, rules.tenant_claim), _scopes(claims, rules.default_scopes)
    return Grant(tenant, scopes, claims.get("exp", math.inf) + LEEWAY_SECONDS)


def _check_claims(claims: Mapping[str, Any], rules: TokenRules, now: float) -> None:
    """Check the registered claims that are asked for; others, such as `sub`, may be anything."""
    named = {name: value for name, value in {"iss": rules.issuer, "aud": rules.audience}.items() if value is not None}
    options: dict[str, ClaimsOption] = {name: {"essential": True, "value": value} for name, value in named.items()}
    options["exp"] = {"essential": rules.needs_end}
    present = {name: claims[name] for name in (*_TIMES, *named) if name in claims}
    if not all(_is_time(present[name]) for name in _TIMES if name in present):
        raise BadToken("time")
    try:
        JWTClaimsRegistry(int(now), LEEWAY_SECONDS, **options).validate(present)
    except ClaimError as error:
        raise BadToken(_REASON_OF.get(error.claim.partition(",")[0], "time")) from None


def _is_time(value: object) -> bool:
    # Python takes True for 1. Not a number is not at most anything.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LAST_SECOND


def _tenant(claims: Mapping[str, Any], claim: str) -> str:
    name = claims[claim] if claim in claims else _at_path(claims, claim.split("."))
    if not isinstance(name, str) or not is_name(name):
        raise BadToken("tenant")
    return name


def _at_path(claims: Mapping[str, Any], path: list[str]) -> object:
    value: object = claims
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _scopes(claims: Mapping[str, Any], default: frozenset[Scope]) -> frozenset[Scope]:
    """Return those of ours that are named; others, such as `openid` and `email`, are for others."""
    named = {name for claim in SCOPE_CLAIMS if claim in claims for name in _scope_names(claims[claim])}
    ours = frozenset(scope for scope in Scope if scope in named)
    return ours or default


def _scope_names(value: object) -> list[str]:
    if isinstance(value, str):
        return value.split(" ")
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return value
    raise BadToken("scopes")
