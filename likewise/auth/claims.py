"""The claims of a JWT, and what they grant: a tenant, scopes, and for how long."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from joserfc.errors import ClaimError
from joserfc.jwt import ClaimsOption, JWTClaimsRegistry

from likewise.auth.caller import Scope
from likewise.auth.jwt import BadToken, Reason
from likewise.auth.tenants import is_name

# Between the issuer's clock and ours.
LEEWAY_SECONDS = 30
# The end of the year 9999. What is later was meant in milliseconds, or for ever.
LAST_SECOND = 253_402_300_799

# RFC 8693 has the first; some issuers write one of the others.
SCOPE_CLAIMS = ("scope", "scopes", "scp")

_TIMES = ("exp", "nbf", "iat")
_REASONS: dict[str, Reason] = {"iss": "issuer", "aud": "audience"}


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
    _check(claims, rules, now)
    if "cnf" in claims:
        # It belongs to a key that its sender would have to prove, and so may not be taken from just anybody.
        raise BadToken("claims")
    tenant, scopes = _tenant(claims, rules.tenant_claim), _scopes(claims, rules.default_scopes)
    return Grant(tenant, scopes, claims.get("exp", math.inf) + LEEWAY_SECONDS)


def _check(claims: Mapping[str, Any], rules: TokenRules, now: float) -> None:
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
        raise BadToken(_REASONS.get(error.claim.partition(",")[0], "time")) from None


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
