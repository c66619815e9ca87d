"""JSON Web Tokens in, a caller out: by the development secret or by an issuer's keys, whichever is set."""

from likewise.auth.caller import Caller, Scope
from likewise.auth.claims import Rules
from likewise.auth.development import ALGORITHM, Secret
from likewise.auth.jwks import Issuer
from likewise.auth.tenants import Tenants
from likewise.auth.verifier import Verifier
from likewise.db.pool import Pool
from likewise.settings import Settings

ISSUER_ALGORITHMS = frozenset({"RS256", "ES256"})


class SignedTokens:
    """The one way of JWT that is set; SettingsError if its secret is none."""

    def __init__(self, pool: Pool, settings: Settings) -> None:
        self._issuer = Issuer(settings.jwks_url or "") if "jwks" in settings.auth else None
        rules = Rules(
            algorithms=ISSUER_ALGORITHMS if self._issuer else frozenset({ALGORITHM}),
            audience=settings.jwt_audience if self._issuer else None,
            issuer=settings.jwt_issuer if self._issuer else None,
            needs_end=self._issuer is not None,
            tenant_claim=settings.jwt_tenant_claim,
            default_scopes=frozenset(scope for scope in Scope if scope in settings.jwt_default_scopes),
        )
        tenants = Tenants(pool, declared=settings.tenants == "declared")
        self._verifier = Verifier(rules, self._issuer or Secret(settings.dev_jwt_secret or ""), tenants)

    @property
    def issuer_fault(self) -> str | None:
        """Why no token of the issuer can be checked."""
        return self._issuer.fault if self._issuer else None

    async def caller(self, token: str) -> Caller | None:
        """Whose token this is; None if it is not to be believed."""
        return await self._verifier.caller(token)

    def fetch_ahead(self) -> None:
        """Ask the issuer for its keys before the first caller needs them, and wait for nothing."""
        if self._issuer is not None:
            self._issuer.fetch()

    async def close(self) -> None:
        """End what is under way."""
        if self._issuer is not None:
            await self._issuer.close()
