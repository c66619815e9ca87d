"""What the claims of a JWT grant: a tenant, scopes, and for how long."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from likewise.auth.bad_token import BadToken
from likewise.auth.caller import Scope
from likewise.auth.tenants import is_name

# Between the issuer's clock and ours.
LEEWAY_SECONDS = 30.0
# The end of the year 9999. What is later was meant in milliseconds, or for ever.
LAST_SECOND = 253_402_300_799

# RFC 8693 has the first; some issuers write one of the others.
SCOPE_CLAIMS = ("scope", "scopes", "scp")


@dataclass(frozen=True)
class Rules:
    """What the tokens of one way have to be.

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
class Granted:
    """A tenant by name, what may be done there, and until when, in seconds since 1970."""

    tenant: str
    scopes: frozenset[Scope]
    until: float


def granted(claims: Mapping[str, Any], rules: Rules, now: float) -> Granted:
    """What these claims grant, if they are signed; BadToken if nothing."""
    until = _check_times(claims, rules, now)
    if rules.issuer is not None and claims.get("iss") != rules.issuer:
        raise BadToken("issuer")
    if rules.audience is not None and rules.audience not in _names(claims.get("aud")):
        raise BadToken("audience")
    if "cnf" in claims:
        # It belongs to a key that its sender would have to prove, and so may not be taken from just anybody.
        raise BadToken("claims")
    return Granted(_tenant(claims, rules.tenant_claim), _scopes(claims, rules.default_scopes), until)


def _check_times(claims: Mapping[str, Any], rules: Rules, now: float) -> float:
    """Until when it counts, the leeway included."""
    begins = [_time(claims, name) for name in ("nbf", "iat")]
    ends = _time(claims, "exp")
    if any(time is not None and time > now + LEEWAY_SECONDS for time in begins):
        raise BadToken("time")
    if ends is None:
        if rules.needs_end:
            raise BadToken("time")
        return math.inf
    if ends + LEEWAY_SECONDS <= now:
        raise BadToken("time")
    return ends + LEEWAY_SECONDS


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    """Seconds since 1970; None if it is absent."""
    if name not in claims:
        return None
    value = claims[name]
    # Python takes True for 1. Not a number is not at most anything.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LAST_SECOND:
        raise BadToken("time")
    return float(value)


def _names(audience: object) -> list[str]:
    """One or several (RFC 7519, section 4.1.3); BadToken if it is anything else."""
    named = [audience] if isinstance(audience, str) else audience
    if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
        raise BadToken("audience")
    return named


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
    """Those of ours that are named; what else is named is for others, as `openid` and `email` are."""
    named = {name for claim in SCOPE_CLAIMS if claim in claims for name in _scope_names(claims[claim])}
    ours = frozenset(scope for scope in Scope if scope in named)
    return ours or default


def _scope_names(value: object) -> list[str]:
    if isinstance(value, str):
        return value.split(" ")
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return value
    raise BadToken("scopes")
