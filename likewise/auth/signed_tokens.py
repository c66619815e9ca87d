"""JSON Web Tokens in, callers out: checked once, by the development secret or an issuer's keys, and remembered."""

import time
from collections.abc import Callable

from cachetools import TLRUCache
from joserfc.errors import JoseError
from joserfc.jws import JWSRegistry

from likewise.auth.api_keys import digest_of
from likewise.auth.caller import Caller, Scope, Tenants
from likewise.auth.issuer import Issuer
from likewise.auth.jwt import BadToken, Jwt, TokenRules, grant_of, read
from likewise.auth.verification_keys import DEVELOPMENT_ALGORITHM, DevelopmentSecret, VerificationKey
from likewise.db.pool import Pool
from likewise.observe.logs import get_logger
from likewise.observe.metrics import TOKENS_REFUSED
from likewise.settings import Settings

ISSUER_ALGORITHMS = frozenset({"RS256", "ES256"})
# Checking costs 50 to 100 µs, which the requests of one burst need not pay each.
REMEMBERED_SECONDS = 30.0
MAX_REMEMBERED = 10_000

log = get_logger(__name__)


class SignedTokens:
    """The tokens of one kind, as one process knows them."""

    def __init__(
        self,
        rules: TokenRules,
        keys: Issuer | DevelopmentSecret,
        tenants: Tenants,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.keys = keys
        self._rules = rules
        self._tenants = tenants
        self._clock = clock
        # By digest, so that a dump of this memory shows no token.
        self._known: TLRUCache[bytes, tuple[Caller, float]] = TLRUCache(
            MAX_REMEMBERED, lambda _digest, known, _now: known[1], timer=clock
        )
        self._version = keys.version
        self._registry = JWSRegistry(algorithms=sorted(rules.algorithms))

    @classmethod
    def of(cls, pool: Pool, settings: Settings) -> "SignedTokens":
        """Return the one kind that is set; SettingsError if its secret is none."""
        by_issuer = "jwks" in settings.auth
        rules = TokenRules(
            algorithms=ISSUER_ALGORITHMS if by_issuer else frozenset({DEVELOPMENT_ALGORITHM}),
            audience=settings.jwt_audience if by_issuer else None,
            issuer=settings.jwt_issuer if by_issuer else None,
            needs_end=by_issuer,
            tenant_claim=settings.jwt_tenant_claim,
            default_scopes=frozenset(scope for scope in Scope if scope in settings.jwt_default_scopes),
        )
        keys = Issuer(settings.jwks_url or "") if by_issuer else DevelopmentSecret(settings.dev_jwt_secret or "")
        return cls(rules, keys, Tenants(pool, declared=settings.tenants == "declared"))

    async def caller(self, token: str) -> Caller | None:
        """Return the caller with this token; None if it is refused.

        Raises:
            IssuerUnavailable: nobody can tell as yet.
            Forbidden: its tenant had to be declared, and is not.
        """
        self._forget_what_older_keys_checked()
        known = self._known.get(digest_of(token))
        if known is not None:
            return known[0]
        try:
            return await self._check(token)
        except BadToken as bad:
            TOKENS_REFUSED.labels(bad.reason).inc()
            log.debug("token_refused", reason=bad.reason)
            return None

    async def _check(self, token: str) -> Caller:
        asked, now = self._clock(), time.time()
        jwt = read(token, self._rules.algorithms)
        # First the claims: what is signed for others is no reason to ask the issuer for new keys.
        grant = grant_of(jwt.claims, self._rules, now)
        await self._check_signature(jwt)
        version = self.keys.version
        caller = Caller(await self._tenants.id_of(grant.tenant), grant.scopes)
        self._forget_what_older_keys_checked()
        if version == self._version:
            self._known[digest_of(token)] = caller, asked + min(REMEMBERED_SECONDS, grant.until - now)
        return caller

    async def _check_signature(self, jwt: Jwt) -> None:
        key = await self.keys.key(jwt.algorithm, jwt.kid)
        if key is None:
            raise BadToken("key")
        if not self._is_signed(jwt, key):
            newer = await self.keys.newer(jwt.algorithm) if jwt.kid is None else None
            if newer is None or not self._is_signed(jwt, newer):
                raise BadToken("signature")

    def _is_signed(self, jwt: Jwt, key: VerificationKey) -> bool:
        algorithm = self._registry.get_alg(jwt.algorithm)
        try:
            algorithm.check_key(key)
            return algorithm.verify(jwt.signed, jwt.signature, key)
        except (JoseError, ValueError):
            return False

    def _forget_what_older_keys_checked(self) -> None:
        if self._version != self.keys.version:
            self._version = self.keys.version
            self._known.clear()
