"""A token is checked once and remembered for a moment, and never for longer than it or its key lasts."""

import time
from collections.abc import AsyncIterator

import pytest

from likewise.auth import caller, signed_tokens
from likewise.auth.caller import Caller, Scope, Tenants
from likewise.auth.issuer import UNKNOWN_SECONDS, Issuer
from likewise.auth.jwt import LEEWAY_SECONDS, TokenRules
from likewise.auth.signed_tokens import SignedTokens
from likewise.db import migrate
from likewise.db.pool import Pool
from likewise.testing import DatabaseUrls, FakeIssuer, Signer
from likewise.testing.tokens import AUDIENCE, ISSUER, claims_of
from tests.auth.clock import Clock

RULES = TokenRules(
    algorithms=frozenset({"RS256", "ES256"}),
    audience=AUDIENCE,
    issuer=ISSUER,
    needs_end=True,
    tenant_claim="org_id",
    default_scopes=frozenset({Scope.READ}),
)


@pytest.fixture
async def serving(database: DatabaseUrls) -> AsyncIterator[Pool]:
    """The role that serves, on a database with a schema."""
    await migrate.upgrade(database.owner, server_role="likewise_server")
    pool = await Pool(database.serving, max_size=2).open()
    yield pool
    await pool.close()


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[FakeIssuer]:
    async with FakeIssuer().running() as server:
        yield server


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def checked(
    serving: Pool, server: FakeIssuer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[SignedTokens]:
    """One that counts in `verified` how often it looked at a signature."""
    server.published = [server.rsa.jwk, server.ec.jwk]
    issuer = Issuer(server.url, clock)
    yield SignedTokens(RULES, issuer, Tenants(serving, declared=False), clock)
    await issuer.close()


@pytest.fixture
def verified(checked: SignedTokens, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A line for each signature that was checked."""
    seen: list[str] = []
    real = checked._is_signed
    monkeypatch.setattr(checked, "_is_signed", lambda jwt, key: seen.append(jwt.algorithm) or real(jwt, key))
    return seen


async def test_a_token_is_checked_once_and_is_its_tenants(
    checked: SignedTokens, verified: list[str], server: FakeIssuer
) -> None:
    # Given
    tokens = [server.rsa.token(claims_of(tenant)) for tenant in ("acme", "other")]
    # When
    callers = [await checked.caller(token) for token in tokens * 3]
    # Then
    assert len(verified) == 2
    assert callers[:2] == callers[2:4] == callers[4:]
    first, second = callers[:2]
    assert isinstance(first, Caller)
    assert isinstance(second, Caller)
    assert first.tenant != second.tenant
    assert (first.scopes, first.key) == (frozenset({Scope.READ}), None)
    assert await checked.caller(server.ec.token(claims_of("acme"))) == first
    for token in tokens:
        assert token.encode() not in checked._known


async def test_it_is_not_remembered_beyond_its_end(
    checked: SignedTokens, server: FakeIssuer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    token = server.rsa.token(claims_of("acme", exp=time.time() - LEEWAY_SECONDS + 10))
    assert await checked.caller(token) is not None
    # When both clocks go on
    wall = time.time()
    clock.now += 11
    monkeypatch.setattr(signed_tokens.time, "time", lambda: wall + 11)
    # Then
    assert await checked.caller(token) is None


async def test_it_is_not_remembered_when_its_key_has_gone(
    checked: SignedTokens, verified: list[str], server: FakeIssuer, clock: Clock
) -> None:
    # Given
    old, new = server.rsa.token(claims_of("acme")), server.ec.token(claims_of("acme"))
    assert await checked.caller(old) is not None
    # When the issuer takes it back, and a token by an unknown name brings that to light
    server.published = [server.ec.jwk]
    clock.now += UNKNOWN_SECONDS
    assert await checked.caller(server.rsa.token(claims_of("acme"), kid="unknown")) is None
    # Then
    assert await checked.caller(old) is None
    assert await checked.caller(new) is not None
    assert verified == ["RS256", "ES256"]


async def test_a_flood_of_tokens_and_tenants_fills_no_memory(
    serving: Pool, server: FakeIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given
    monkeypatch.setattr(signed_tokens, "MAX_REMEMBERED", 3)
    monkeypatch.setattr(caller, "MAX_REMEMBERED", 2)
    server.published = [server.ec.jwk]
    names, issuer = Tenants(serving, declared=False), Issuer(server.url)
    many = SignedTokens(RULES, issuer, names)
    # When
    for turn in range(2):
        for n in range(6):
            assert await many.caller(server.ec.token(claims_of(f"tenant {n}", turn=turn))) is not None
    await issuer.close()
    # Then
    assert (len(many._known), len(names._known)) == (3, 2)


async def test_what_is_refused_is_not_remembered(checked: SignedTokens, server: FakeIssuer) -> None:
    for n in range(5):
        assert await checked.caller(server.rsa.token(claims_of("acme", aud=f"{n}"))) is None
    assert len(checked._known) == 0


async def test_who_names_no_key_is_checked_with_a_new_one_too(
    checked: SignedTokens, server: FakeIssuer, clock: Clock
) -> None:
    # Given an issuer whose one key has no name, and has just been changed
    old, new = Signer.rsa(""), Signer.rsa("")
    server.published = [{name: value for name, value in old.jwk.items() if name != "kid"}]
    assert await checked.caller(old.token(claims_of("nameless"))) is not None
    server.published = [{name: value for name, value in new.jwk.items() if name != "kid"}]
    # Then it is not asked more often than for a key that is not known
    assert await checked.caller(new.token(claims_of("nameless"))) is None
    clock.now += UNKNOWN_SECONDS
    assert await checked.caller(new.token(claims_of("nameless"))) is not None
    assert await checked.caller(old.token(claims_of("nameless"))) is None
