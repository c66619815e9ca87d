"""Tokens that nobody may take, each with what is wrong with it."""

import base64
import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
from joserfc.jwk import ECKey, OctKey

from likewise.auth.jwt import Reason
from likewise.testing.tokens import FakeIssuer, Signer, base64url, claims_of, compact

SECRET = "a secret of the tests, of more than 32 bytes"
TENANT = "acme"


@dataclass
class Forger:
    """Somebody who has good tokens of the issuer, its public keys, and a key of their own."""

    issuer: FakeIssuer
    own: Signer = field(default_factory=lambda: Signer.rsa("rsa"))
    dev: Signer = field(default_factory=lambda: Signer.shared(SECRET))

    @property
    def rsa(self) -> Signer:
        """The issuer's first key."""
        return self.issuer.rsa

    @property
    def ec(self) -> Signer:
        """The issuer's second key."""
        return self.issuer.ec


def now(seconds: float = 0) -> int:
    return int(time.time() + seconds)


def good(signer: Signer, **claims: Any) -> str:
    return signer.token(claims_of(TENANT, **claims))


def headed(signer: Signer, **header: Any) -> str:
    return signer.token(claims_of(TENANT), **header)


def reheaded(token: str, header: Any) -> str:
    """Another header over the same claims and signature."""
    _, claims, signature = token.split(".")
    return f"{base64url(orjson.dumps(header))}.{claims}.{signature}"


def reclaimed(token: str, claims: Any) -> str:
    """Other claims under the same signature."""
    header, _, signature = token.split(".")
    return f"{header}.{base64url(orjson.dumps(claims))}.{signature}"


def unsigned(algorithm: str, signature: str = "") -> str:
    return compact({"alg": algorithm, "typ": "JWT"}, claims_of(TENANT), lambda _: b"") + signature


def with_public_key_as_secret(forger: Forger, written: bytes) -> str:
    """RFC 8725, section 2.1: a server that lets the token say the algorithm takes its own public key for a secret."""
    key = OctKey(written, written, None)
    header = {"alg": "HS256", "typ": "JWT", "kid": "rsa"}
    return compact(header, claims_of(TENANT), Signer("HS256", "rsa", key).sign)


def with_empty_secret(**header: str) -> str:
    """What a server takes that looks its secret up and finds none."""
    return compact(
        {"alg": "HS256", "typ": "JWT", **header}, claims_of(TENANT), lambda one: hmac.digest(b"", one, "sha256")
    )


def parts(token: str) -> list[str]:
    return token.split(".")


def padded(token: str) -> str:
    header, claims, signature = parts(token)
    return ".".join((header, claims, signature + "=" * (-len(signature) % 4)))


def with_loose_bits(token: str) -> str:
    """The last character of a signature of 256 bytes, or of 64, has bits that decoding drops."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return token[:-1] + letters[letters.index(token[-1]) + 1]


def twice(signer: Signer, header: bytes | None = None, claims: bytes | None = None) -> str:
    """JSON in which a name comes twice: two readers may see two tokens."""
    usual = orjson.dumps({"alg": signer.algorithm, "kid": signer.kid})
    return compact(header or usual, claims or orjson.dumps(claims_of(TENANT)), signer.sign)


def doubled(name: str, first: Any, claims: Mapping[str, Any]) -> bytes:
    raw = orjson.dumps(claims)
    return b'{"%s":%s,%s' % (name.encode(), orjson.dumps(first), raw[1:])


def raw_time(signer: Signer, name: str, written: bytes) -> str:
    """A time that no JSON library of ours would write."""
    claims = orjson.dumps({key: value for key, value in claims_of(TENANT).items() if key != name})
    return twice(signer, claims=claims[:-1] + b',"%s":%s}' % (name.encode(), written))


def encrypted() -> str:
    """Five parts: RFC 7516."""
    header = base64url(orjson.dumps({"alg": "RSA-OAEP", "enc": "A256GCM", "kid": "rsa"}))
    return ".".join([header, *(base64url(b"x" * 32) for _ in range(4))])


def as_json(token: str) -> str:
    header, claims, signature = parts(token)
    return orjson.dumps({"protected": header, "payload": claims, "signature": signature}).decode()


def in_der(token: str) -> str:
    """An ECDSA signature as OpenSSL writes it, not as a JWT has it."""
    header, claims, signature = parts(token)
    raw = base64.urlsafe_b64decode(signature + "==")
    half = [int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")]
    numbers = b"".join(b"\x02\x21\x00" + one.to_bytes(32, "big") for one in half)
    return f"{header}.{claims}.{base64url(b'0' + bytes([len(numbers)]) + numbers)}"


Forgery = Callable[[Forger], str]
# With the reason that it is refused for: a token that fails at something else shows nothing of what its name says. None
# is of what is no token, and is looked for among the API keys.
Forged = tuple[Reason | None, Forgery]

# Refused by a server whose tokens come from an issuer.
OF_AN_ISSUER: dict[str, Forged] = {
    # The algorithm is not the token's to choose.
    "alg none": ("malformed", lambda f: unsigned("none")),
    "alg none with something for a signature": ("algorithm", lambda f: unsigned("none", "AAAA")),
    "alg None": ("algorithm", lambda f: unsigned("None", "AAAA")),
    "alg NONE with a signature": ("algorithm", lambda f: reheaded(good(f.rsa), {"alg": "NONE", "kid": "rsa"})),
    "alg none with the good signature": ("algorithm", lambda f: reheaded(good(f.rsa), {"alg": "none", "kid": "rsa"})),
    "alg empty": ("algorithm", lambda f: headed(f.rsa, alg="")),
    "alg absent": ("algorithm", lambda f: compact({"kid": "rsa"}, claims_of(TENANT), f.rsa.sign)),
    "alg a list": ("algorithm", lambda f: headed(f.rsa, alg=["RS256"])),
    "alg in small letters": ("algorithm", lambda f: headed(f.rsa, alg="rs256")),
    "HS256 with the public key in PEM": (
        "algorithm",
        lambda f: with_public_key_as_secret(f, f.rsa.key.as_pem(private=False)),  # type: ignore[union-attr]
    ),
    "HS256 with the public key in DER": (
        "algorithm",
        lambda f: with_public_key_as_secret(f, f.rsa.key.as_der(private=False)),  # type: ignore[union-attr]
    ),
    "HS256 with the public key as JWK": ("algorithm", lambda f: with_public_key_as_secret(f, orjson.dumps(f.rsa.jwk))),
    "HS256 with an empty secret": ("algorithm", lambda f: with_empty_secret(kid="rsa")),
    "HS256 with the secret of dev": ("algorithm", lambda f: good(f.dev)),
    "RS512 by the same key": (
        "algorithm",
        lambda f: compact(
            {"alg": "RS512", "kid": "rsa"}, claims_of(TENANT), lambda signed: f.rsa.sign(signed, "RS512")
        ),
    ),
    "PS256 by the same key": (
        "algorithm",
        lambda f: compact(
            {"alg": "PS256", "kid": "rsa"}, claims_of(TENANT), lambda signed: f.rsa.sign(signed, "PS256")
        ),
    ),
    "ES256 that says RS256": ("key", lambda f: headed(f.ec, alg="RS256")),
    "RS256 that says ES256": ("key", lambda f: headed(f.rsa, alg="ES256")),
    "ES256 that says RS256, without a name": ("signature", lambda f: headed(f.ec, alg="RS256", kid=None)),
    "RS256 that says ES256, without a name": ("signature", lambda f: headed(f.rsa, alg="ES256", kid=None)),
    "ES384 by another curve": ("algorithm", lambda f: headed(Signer("ES384", "ec", ECKey.generate_key("P-384")))),
    "ES256 by another curve": (
        "signature",
        lambda f: compact(
            {"alg": "ES256", "kid": "ec"},
            claims_of(TENANT),
            lambda signed: Signer("ES384", "ec", ECKey.generate_key("P-384")).sign(signed),
        ),
    ),
    # Keys.
    "another key by the same name": ("signature", lambda f: good(f.own)),
    "another key, sent along": ("signature", lambda f: headed(f.own, jwk=f.own.jwk)),
    "another key, sent along without a name": ("signature", lambda f: headed(f.own, jwk=f.own.jwk, kid=None)),
    "another key, at an address": ("key", lambda f: headed(f.own, jku=f"{f.issuer.url}/evil", kid="evil")),
    "another key, as certificates": ("signature", lambda f: headed(f.own, x5c=["MIIB"], x5u=f"{f.issuer.url}/evil")),
    "another key of that curve": ("signature", lambda f: headed(Signer.ec("ec"))),
    "the name of the other key": ("key", lambda f: headed(f.rsa, kid="ec")),
    "a name that nobody has": ("key", lambda f: headed(f.rsa, kid="nobody")),
    "a name that leads elsewhere": ("key", lambda f: headed(f.rsa, kid="../../../../dev/null")),
    "a name with SQL": ("key", lambda f: headed(f.rsa, kid="' OR 1=1 --")),
    "a name that is a number": ("header", lambda f: headed(f.rsa, kid=1)),
    "a name that is a list": ("header", lambda f: headed(f.rsa, kid=["rsa"])),
    "a name that is null": ("header", lambda f: compact({"alg": "RS256", "kid": None}, claims_of(TENANT), f.rsa.sign)),
    "no name, and a key of one's own": ("signature", lambda f: headed(f.own, kid=None)),
    # Whose it is, and for whom.
    "aud absent": ("audience", lambda f: good(f.rsa, aud=None)),
    "aud another": ("audience", lambda f: good(f.rsa, aud="somebody-else")),
    "aud longer": ("audience", lambda f: good(f.rsa, aud="likewise2")),
    "aud shorter": ("audience", lambda f: good(f.rsa, aud="like")),
    "aud in capitals": ("audience", lambda f: good(f.rsa, aud="Likewise")),
    "aud empty": ("audience", lambda f: good(f.rsa, aud=[])),
    "aud others": ("audience", lambda f: good(f.rsa, aud=["a", "b"])),
    "aud a number among names": ("audience", lambda f: good(f.rsa, aud=["likewise", 1])),
    "aud an object": ("audience", lambda f: good(f.rsa, aud={"likewise": True})),
    "iss absent": ("issuer", lambda f: good(f.rsa, iss=None)),
    "iss another": ("issuer", lambda f: good(f.rsa, iss="https://evil.example/")),
    "iss without its slash": ("issuer", lambda f: good(f.rsa, iss="https://issuer.example")),
    "iss a list": ("issuer", lambda f: good(f.rsa, iss=["https://issuer.example/"])),
    "exp absent": ("time", lambda f: good(f.rsa, exp=None)),
    "cnf, for who proves a key": ("claims", lambda f: good(f.rsa, cnf={"jkt": "x"})),
    # How it is written, as far as it depends on the signature.
    "an ECDSA signature in DER": ("signature", lambda f: in_der(good(f.ec))),
    "an ECDSA signature of zeros": ("signature", lambda f: ".".join([*parts(good(f.ec))[:2], base64url(bytes(64))])),
    "an ECDSA signature with loose bits": ("malformed", lambda f: with_loose_bits(good(f.ec))),
    "a signature cut short": (
        "signature",
        lambda f: compact({"alg": "RS256"}, claims_of(TENANT), lambda one: f.rsa.sign(one)[:-1]),
    ),
    "a signature of zeros": ("signature", lambda f: compact({"alg": "RS256"}, claims_of(TENANT), lambda _: bytes(256))),
    "a signature of 10 KB": (
        "signature",
        lambda f: compact({"alg": "RS256"}, claims_of(TENANT), lambda _: bytes(10_000)),
    ),
}


def of_either(pick: Callable[[Forger], Signer]) -> dict[str, Forged]:
    """Refused in every way of JWT; `pick` is who signs there."""

    def claiming(**claims: Any) -> Forgery:
        return lambda f: good(pick(f), **claims)

    def heading(**header: Any) -> Forgery:
        return lambda f: headed(pick(f), **header)

    def timed(name: str, written: bytes) -> Forgery:
        return lambda f: raw_time(pick(f), name, written)

    def tenant(value: Any) -> Forgery:
        return lambda f: pick(f).token({**claims_of(TENANT), "org_id": value})

    return {
        # Extensions and other contents.
        "crit": ("header", heading(crit=["exp"], exp=1)),
        "crit empty": ("header", heading(crit=[])),
        "crit of b64": ("header", heading(crit=["b64"], b64=False)),
        "b64 false": ("header", heading(b64=False)),
        "b64 true": ("header", heading(b64=True)),
        "nested": ("header", heading(cty="JWT")),
        "compressed": ("header", heading(zip="DEF")),
        "typ of another kind": ("header", heading(typ="logout+jwt")),
        "typ of a proof": ("header", heading(typ="dpop+jwt")),
        "typ a number": ("header", heading(typ=1)),
        "typ empty": ("header", heading(typ="")),
        # Times.
        "exp passed": ("time", claiming(exp=now(-120))),
        "exp a string": ("time", claiming(exp=str(now(86_400)))),
        "exp a boolean": ("time", claiming(exp=True)),
        "exp an object": ("time", claiming(exp={})),
        "exp negative": ("time", claiming(exp=-1)),
        "exp zero": ("time", claiming(exp=0)),
        "exp in milliseconds": ("time", claiming(exp=now(86_400) * 1000)),
        "exp NaN": ("malformed", timed("exp", b"NaN")),
        "exp Infinity": ("malformed", timed("exp", b"Infinity")),
        "exp beyond a double": ("time", timed("exp", b"1e999")),
        "exp of 400 digits": ("time", timed("exp", b"9" * 400)),
        "exp of 5,000 digits": ("malformed", timed("exp", b"9" * 5_000)),
        "exp null": ("time", timed("exp", b"null")),
        "nbf to come": ("time", claiming(nbf=now(86_400))),
        "nbf a string": ("time", claiming(nbf="soon")),
        "nbf a boolean": ("time", claiming(nbf=True)),
        "nbf NaN": ("malformed", timed("nbf", b"NaN")),
        "iat to come": ("time", claiming(iat=now(86_400))),
        "iat a string": ("time", claiming(iat="2026-01-01")),
        "iat a boolean": ("time", claiming(iat=True)),
        "iat huge": ("time", timed("iat", b"1e308")),
        # The tenant.
        "org_id absent": ("tenant", claiming(org_id=None)),
        "org_id null": ("tenant", tenant(None)),
        "org_id empty": ("tenant", tenant("")),
        "org_id blank": ("tenant", tenant("   ")),
        "org_id a number": ("tenant", tenant(1)),
        "org_id a boolean": ("tenant", tenant(True)),
        "org_id a list": ("tenant", tenant(["acme"])),
        "org_id an object": ("tenant", tenant({"name": "acme"})),
        "org_id with NUL": ("tenant", tenant("acme\x00")),
        "org_id with a new line": ("tenant", tenant("acme\n")),
        "org_id with an escape": ("tenant", tenant("\x1b[31macme")),
        "org_id with half a pair": (
            "tenant",
            lambda f: twice(
                pick(f), claims=orjson.dumps(claims_of("acme"))[:-1].replace(b'"acme"', b'"acme\\ud800"') + b"}"
            ),
        ),
        "org_id too long": ("tenant", tenant("a" * 513)),
        "scope a number": ("scopes", claiming(scope=1)),
        "scope a list with a number": ("scopes", claiming(scopes=["read", 1])),
        "scp an object": ("scopes", claiming(scp={"read": True})),
        # How it is written.
        "other claims under the signature": ("signature", lambda f: reclaimed(good(pick(f)), claims_of("other"))),
        "another header over the signature": (
            "signature",
            lambda f: reheaded(good(pick(f)), {"alg": pick(f).algorithm, "kid": pick(f).kid, "typ": "at+jwt"}),
        ),
        "no signature": ("malformed", lambda f: ".".join([*parts(good(pick(f)))[:2], ""])),
        "two parts": ("malformed", lambda f: ".".join(parts(good(pick(f)))[:2])),
        "four parts": ("malformed", lambda f: good(pick(f)) + ".AAAA"),
        "five parts, encrypted": ("malformed", lambda f: encrypted()),
        "trailing dot": ("malformed", lambda f: good(pick(f)) + "."),
        "trailing garbage": ("signature", lambda f: good(pick(f)) + "AAAA"),
        "trailing comma and another": ("malformed", lambda f: f"{good(pick(f))},{good(pick(f))}"),
        "padding": ("malformed", lambda f: padded(good(pick(f)))),
        "loose bits": ("malformed", lambda f: with_loose_bits(good(pick(f)))),
        "the alphabet with + and /": ("malformed", lambda f: good(pick(f)).replace("-", "+").replace("_", "/") + "+"),
        "JSON serialisation": ("malformed", lambda f: as_json(good(pick(f)))),
        "too large": ("malformed", lambda f: good(pick(f), filler="x" * 17_000)),
        "alg twice": (
            "malformed",
            lambda f: twice(pick(f), header=doubled("alg", "none", {"alg": pick(f).algorithm, "kid": pick(f).kid})),
        ),
        "org_id twice": ("malformed", lambda f: twice(pick(f), claims=doubled("org_id", "other", claims_of(TENANT)))),
        "exp twice": ("malformed", lambda f: twice(pick(f), claims=doubled("exp", now(-600), claims_of(TENANT)))),
        "claims no object": ("malformed", lambda f: pick(f).token([claims_of(TENANT)])),
        "claims no JSON": ("malformed", lambda f: twice(pick(f), claims=b"{'org_id': 'acme'}")),
        "claims with a byte order mark": (
            "malformed",
            lambda f: twice(pick(f), claims=b"\xef\xbb\xbf" + orjson.dumps(claims_of("a"))),
        ),
        "claims in UTF-16": (
            "malformed",
            lambda f: twice(pick(f), claims=orjson.dumps(claims_of("a")).decode().encode("utf-16")),
        ),
        "claims 33 deep": ("malformed", claiming(deep=_nested(32))),
        "claims 5,000 deep": (
            "malformed",
            lambda f: twice(pick(f), claims=b'{"a":' + b"[" * 5_000 + b"]" * 5_000 + b"}"),
        ),
        "header no object": ("malformed", lambda f: twice(pick(f), header=b'["RS256"]')),
        "header no JSON": ("malformed", lambda f: twice(pick(f), header=b"alg=RS256")),
        "a key of ours, wrong": (None, lambda f: "lw_0123456789_" + "a" * 43),
        "no token at all": ("malformed", lambda f: "token"),
    }


def _nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


# Refused by a server with a secret for development.
OF_DEVELOPMENT: dict[str, Forged] = {
    "dev: alg none": ("malformed", lambda f: unsigned("none")),
    "dev: alg none with something for a signature": ("algorithm", lambda f: unsigned("none", "AAAA")),
    "dev: alg none with the good signature": ("algorithm", lambda f: reheaded(good(f.dev), {"alg": "none"})),
    "dev: HS512 by the same secret": (
        "algorithm",
        lambda f: compact({"alg": "HS512"}, claims_of(TENANT), lambda signed: f.dev.sign(signed, "HS512")),
    ),
    "dev: RS256 by the issuer": ("algorithm", lambda f: good(f.rsa)),
    "dev: another secret": ("signature", lambda f: good(Signer.shared("b" + SECRET))),
    "dev: an empty secret": ("signature", lambda f: with_empty_secret()),
    "dev: a signature of zeros": ("signature", lambda f: ".".join([*parts(good(f.dev))[:2], base64url(bytes(32))])),
    "dev: a secret of its own sent along": (
        "signature",
        lambda f: replace(Signer.shared("b" * 40), kid="x").token(
            claims_of(TENANT), jwk={"kty": "oct", "k": base64url(b"b" * 40)}
        ),
    ),
}
