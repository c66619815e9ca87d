"""JWTs as an issuer signs them and as somebody forges them, and an issuer that publishes its keys on the loopback."""

import base64
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from joserfc.jwk import ECKey, OctKey, RSAKey
from joserfc.jws import JWSRegistry

from likewise.testing.scripted import ReceivedRequest, ScriptedServer

AUDIENCE = "likewise"
ISSUER = "https://issuer.example/"
HOUR = 3_600.0

SigningKey = RSAKey | ECKey | OctKey


def base64url(raw: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def compact(header: Any, claims: Any, sign: Callable[[bytes], bytes]) -> str:
    """A token of any header and claims; bytes go in as they are, everything else as JSON."""
    parts = (one if isinstance(one, bytes) else orjson.dumps(one) for one in (header, claims))
    signed = ".".join(map(base64url, parts))
    return f"{signed}.{base64url(sign(signed.encode()))}"


@dataclass(frozen=True)
class Signer:
    """A key with the name and the algorithm that it goes by."""

    algorithm: str
    kid: str
    key: SigningKey = field(repr=False)

    @staticmethod
    def rsa(kid: str, bits: int = 2_048) -> "Signer":
        """One for RS256."""
        return Signer("RS256", kid, RSAKey.generate_key(bits))

    @staticmethod
    def ec(kid: str) -> "Signer":
        """One for ES256."""
        return Signer("ES256", kid, ECKey.generate_key("P-256"))

    @staticmethod
    def shared(secret: str) -> "Signer":
        """One for HS256, as of LIKEWISE_AUTH=dev."""
        return Signer("HS256", "", OctKey.import_key(secret.encode()))

    @property
    def jwk(self) -> dict[str, Any]:
        """Its public half, as an issuer publishes it."""
        public: dict[str, Any] = dict(self.key.as_dict(private=False))
        return {**public, "kid": self.kid, "alg": self.algorithm, "use": "sig"}

    def sign(self, signed: bytes, algorithm: str | None = None) -> bytes:
        """The signature, by its own algorithm or by another that its key can do."""
        name = algorithm or self.algorithm
        return JWSRegistry(algorithms=[name]).get_alg(name).sign(signed, self.key)

    def token(self, claims: Any, **header: Any) -> str:
        """A token with these claims; a member of the header that is None is left out."""
        usual = {"alg": self.algorithm, "typ": "JWT", "kid": self.kid or None}
        named = {name: value for name, value in {**usual, **header}.items() if value is not None}
        return compact(named, claims, self.sign)


def claims_of(tenant: Any, **others: Any) -> dict[str, Any]:
    """Claims of a good token of FakeIssuer for an hour; one that is None is left out."""
    now = int(time.time())
    usual = {"org_id": tenant, "iss": ISSUER, "aud": AUDIENCE, "iat": now, "exp": now + HOUR, "sub": "somebody"}
    return {name: value for name, value in {**usual, **others}.items() if value is not None}


class FakeIssuer(ScriptedServer):
    """An issuer with an RSA key `rsa` and a P-256 key `ec`. `published` is its set of keys, which may be changed."""

    path = "/.well-known/jwks.json"

    def __init__(self) -> None:
        super().__init__()
        self.rsa = Signer.rsa("rsa")
        self.ec = Signer.ec("ec")
        self.published: list[Mapping[str, Any]] = [self.rsa.jwk, self.ec.jwk]

    async def good(self, asked: ReceivedRequest) -> dict[str, Any]:
        """The set of keys."""
        return {"keys": self.published}
