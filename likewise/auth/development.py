"""Tokens for development: signed and checked with one secret, LIKEWISE_DEV_JWT_SECRET."""

import time
from collections.abc import Collection

from joserfc import jwt
from joserfc.jwk import OctKey

from likewise.auth.caller import Scope
from likewise.errors import SettingsError

ALGORITHM = "HS256"


class Secret:
    """The one key of `LIKEWISE_AUTH=dev`; SettingsError if it is a public key, which others know."""

    version = 0

    def __init__(self, secret: str) -> None:
        try:
            self._key = OctKey.import_key(secret.encode())
        except ValueError:
            words = "it is a public key, which others know; `openssl rand -hex 32` makes a secret"
            raise SettingsError(f"LIKEWISE_DEV_JWT_SECRET: {words}.") from None

    async def key(self, algorithm: str, kid: str | None) -> OctKey:
        """The key, whatever a token calls it."""
        return self._key

    async def newer(self, algorithm: str) -> None:
        """There is one secret, for as long as the process lives."""
        return

    def token(self, tenant: str, claim: str, scopes: Collection[Scope], seconds: float | None) -> str:
        """A token for a tenant, named in a claim; it ends after so many seconds, or never."""
        now = int(time.time())
        claims = {"iat": now, claim: tenant, "scope": " ".join(sorted(scopes))}
        if seconds is not None:
            claims["exp"] = now + int(seconds)
        return jwt.encode({"alg": ALGORITHM}, claims, self._key, algorithms=[ALGORITHM])
