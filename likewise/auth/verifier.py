"""Verifier: whose JWT this is, checked once and remembered for a moment."""

import time
from typing import Protocol

from joserfc.errors import JoseError
from joserfc.jwk import OctKey
from joserfc.jws import JWSRegistry

from likewise.auth import jwk
from likewise.auth.bad_token import BadToken
from likewise.auth.caller import Caller
from likewise.auth.claims import Rules, granted
from likewise.auth.jwt import Jwt, read
from likewise.auth.recent import Recent
from likewise.auth.tenants import Tenants
from likewise.auth.tokens import digest_of
from likewise.observe.logs import get_logger
from likewise.observe.metrics import TOKENS_REFUSED

# Checking costs 50 to 100 µs, which the requests of one burst need not pay each.
REMEMBERED_SECONDS = 30.0
MOST_REMEMBERED = 10_000

Key = jwk.Key | OctKey

log = get_logger(__name__)


class KeySource(Protocol):
    """Where the keys of one way come from."""

    @property
    def version(self) -> int:
        """Another number once keys have gone or come."""
        ...

    async def key(self, algorithm: str, kid: str | None) -> Key | None:
        """The key that a token names; None if there is none."""
        ...

    async def newer(self, algorithm: str) -> Key | None:
        """What has come in the place of the one key of tokens that name none; None if nothing has."""
        ...


class Verifier:
    """The JWTs of one way, as one process sees them."""

    def __init__(self, rules: Rules, keys: KeySource, tenants: Tenants) -> None:
        self._rules = rules
        self._keys = keys
        self._tenants = tenants
        # By digest, so that a dump of this memory shows no token.
        self._known: Recent[bytes, Caller] = Recent(MOST_REMEMBERED)
        self._version = keys.version
        self._registry = JWSRegistry(algorithms=sorted(rules.algorithms))

    async def caller(self, token: str) -> Caller | None:
        """Whose token this is; None if it is refused.

        Raises:
            IssuerUnavailable: nobody can tell as yet.
            Forbidden: its tenant had to be declared, and is not.
        """
        self._forget_what_older_keys_checked()
        try:
            return self._known.get(digest_of(token)) or await self._checked(token)
        except BadToken as bad:
            TOKENS_REFUSED.labels(bad.reason).inc()
            log.debug("token_refused", reason=bad.reason)
            return None

    async def _checked(self, token: str) -> Caller:
        asked, now = time.monotonic(), time.time()
        jwt = read(token, self._rules.algorithms)
        # First the claims: what is signed for others is no reason to ask the issuer for new keys.
        allowed = granted(jwt.claims, self._rules, now)
        key = await self._keys.key(jwt.algorithm, jwt.kid)
        if key is None:
            raise BadToken("key")
        if not self._is_signed(jwt, key):
            newer = await self._keys.newer(jwt.algorithm) if jwt.kid is None else None
            if newer is None or not self._is_signed(jwt, newer):
                raise BadToken("signature")
        version = self._keys.version
        caller = Caller(await self._tenants.id_of(allowed.tenant), allowed.scopes)
        self._forget_what_older_keys_checked()
        if version == self._version:
            self._known.keep(digest_of(token), caller, asked + min(REMEMBERED_SECONDS, allowed.until - now))
        return caller

    def _forget_what_older_keys_checked(self) -> None:
        if self._version != self._keys.version:
            self._version = self._keys.version
            self._known.clear()

    def _is_signed(self, jwt: Jwt, key: Key) -> bool:
        algorithm = self._registry.get_alg(jwt.algorithm)
        try:
            algorithm.check_key(key)
            return algorithm.verify(jwt.signed, jwt.signature, key)
        except (JoseError, ValueError):
            return False
