"""Keys are looked up, remembered for a moment, and counted."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from likewise.auth import api_keys
from likewise.auth.api_keys import KeyRing, new_key, prefix_of
from likewise.auth.caller import Scope
from likewise.db import keys, migrate
from likewise.db.pool import Pool
from likewise.errors import DatabaseUnavailable
from likewise.settings import Settings
from likewise.testing import DatabaseUrls
from tests.auth.clock import Clock
from tests.auth.keys import make_key


@pytest.fixture
async def serving(settings: Settings, database: DatabaseUrls) -> AsyncIterator[Pool]:
    """The role that serves, on a database with a schema."""
    await migrate.upgrade(database.owner, server_role="likewise_server")
    pool = await Pool(database.serving, max_size=2).open()
    yield pool
    await pool.close()


@pytest.fixture
async def owner(serving: Pool, database: DatabaseUrls) -> AsyncIterator[Pool]:
    """The owner."""
    pool = await Pool(database.owner, max_size=1).open()
    yield pool
    await pool.close()


async def test_a_key_is_its_tenants_with_its_scopes(serving: Pool, settings: Settings) -> None:
    # Given
    ring = KeyRing(serving)
    tokens = [await make_key(settings, tenant, Scope.READ) for tenant in ("acme", "acme", "other")]
    # When
    callers = [await ring.caller(token) for token in tokens]
    # Then
    assert [caller.scopes for caller in callers if caller] == [frozenset({Scope.READ})] * 3
    assert [caller.key for caller in callers if caller] == [prefix_of(token) for token in tokens]
    tenants = [caller.tenant for caller in callers if caller]
    assert tenants[0] == tenants[1] != tenants[2]


async def test_a_wrong_secret_a_strange_prefix_and_an_old_key_are_nobody(serving: Pool, settings: Settings) -> None:
    ring = KeyRing(serving)
    good = await make_key(settings, "acme", Scope.READ)
    wrong = good[:-1] + ("a" if good[-1] != "a" else "b")
    expired = await make_key(settings, "acme", Scope.READ, days=0)
    for token in (wrong, expired, new_key().token, "nonsense", good.upper()):
        assert await ring.caller(token) is None
    assert await ring.caller(good) is not None


async def test_every_refused_key_was_compared(
    serving: Pool, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has no row takes the same way as one with a wrong secret."""
    compared = []
    real = api_keys.hmac.compare_digest
    monkeypatch.setattr(api_keys.hmac, "compare_digest", lambda a, b: compared.append(len(a)) or real(a, b))
    good = await make_key(settings, "acme", Scope.READ)
    for token in (good[:-1] + ("a" if good[-1] != "a" else "b"), new_key().token):
        assert await KeyRing(serving).caller(token) is None
    assert compared == [32, 32]


async def test_a_key_is_remembered_for_a_moment_and_then_asked_for_again(
    serving: Pool, owner: Pool, settings: Settings
) -> None:
    # Given
    clock = Clock()
    ring, token = KeyRing(serving, remembered_seconds=5, clock=clock), await make_key(settings, "acme", Scope.READ)
    assert await ring.caller(token) is not None
    await keys.revoke(owner, prefix_of(token) or "")
    # When it is known to this process, then when that has passed
    still = await ring.caller(token)
    clock.now += 5
    # Then
    assert still is not None
    assert await ring.caller(token) is None


async def test_memory_is_bounded(serving: Pool, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "MAX_REMEMBERED", 2)
    ring = KeyRing(serving)
    tokens = [await make_key(settings, "acme", Scope.READ) for _ in range(4)]
    for token in tokens * 2:
        assert await ring.caller(token) is not None
    assert len(ring._known) == 2
    assert not [token for token in tokens if token.encode() in ring._known]


async def test_the_last_use_is_kept_and_never_goes_back(serving: Pool, owner: Pool, settings: Settings) -> None:
    # Given
    token = await make_key(settings, "acme", Scope.READ)
    prefix = prefix_of(token) or ""
    ring = KeyRing(serving)
    # When
    await ring.caller(token)
    await ring.flush()
    first = (await keys.listed(owner))[0].last_used_at
    await keys.used(serving, {prefix: datetime.now(UTC) - timedelta(days=1), "gone": datetime.now(UTC)})
    # Then
    assert first is not None
    assert (await keys.listed(owner, "acme"))[0].last_used_at == first
    assert await keys.listed(owner, "other") == []


async def test_uses_that_cannot_be_kept_now_are_kept_later(serving: Pool, owner: Pool, settings: Settings) -> None:
    # Given
    away = Pool(serving.url, max_size=1)
    ring, token = KeyRing(serving), await make_key(settings, "acme", Scope.READ)
    await ring.caller(token)
    # When
    ring._pool = away
    with pytest.raises(DatabaseUnavailable):
        await ring.flush()
    ring._pool = serving
    await ring.flush()
    # Then
    assert (await keys.listed(owner))[0].last_used_at is not None
