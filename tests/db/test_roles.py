"""The role that serves, made in a database of one's own."""

import stat
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict

from likewise.db import roles
from likewise.errors import SettingsError
from likewise.testing import ThrowawayPostgres, throwaway_postgres


@pytest.fixture
async def owner_url() -> AsyncIterator[str]:
    """A database on a server of its own, where the role that serves is not made yet."""
    async with throwaway_postgres() as postgres:
        await _without_the_role(postgres)
        yield postgres.server.superuser_url()


async def _without_the_role(postgres: ThrowawayPostgres) -> None:
    async with await AsyncConnection.connect(postgres.server.superuser_url(), autocommit=True) as superuser:
        await superuser.execute(f"ALTER ROLE {roles.SERVER_ROLE} RENAME TO another")  # type: ignore[arg-type]


async def _stored_password(owner_url: str) -> str:
    async with await AsyncConnection.connect(owner_url, autocommit=True) as superuser:
        row = await (
            await superuser.execute("SELECT rolpassword FROM pg_authid WHERE rolname = %s", [roles.SERVER_ROLE])
        ).fetchone()
    assert row is not None
    return str(row[0])


async def test_the_role_is_made_once_and_its_url_kept_for_its_owner_only(owner_url: str, tmp_path: Path) -> None:
    # When it is made
    url = await roles.make_serving_role(owner_url, tmp_path)
    # Then its URL is in a file that nobody else may read, and the server keeps no password in clear
    file = tmp_path / roles.URL_FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert roles.stored_serving_url(tmp_path) == url
    assert roles.role_of(url) == roles.SERVER_ROLE
    password = str(conninfo_to_dict(url)["password"])
    kept = await _stored_password(owner_url)
    assert kept.startswith("SCRAM-SHA-256$")
    assert password not in kept
    # And it can log in, and is a plain role
    async with await AsyncConnection.connect(url) as serving:
        row = await (
            await serving.execute("SELECT rolsuper OR rolcreaterole OR rolcreatedb FROM pg_roles WHERE rolname = user")
        ).fetchone()
    assert row == (False,)
    # And again it is the same
    assert await roles.make_serving_role(owner_url, tmp_path) == url


async def test_a_role_whose_making_was_cut_short_is_made_with_the_password_that_was_kept(
    owner_url: str, tmp_path: Path
) -> None:
    # Given a file that was written, and a role that was not made
    url = await roles.make_serving_role(owner_url, tmp_path)
    first = await _stored_password(owner_url)
    async with await AsyncConnection.connect(owner_url, autocommit=True) as superuser:
        await superuser.execute(f"DROP OWNED BY {roles.SERVER_ROLE}")  # type: ignore[arg-type]
        await superuser.execute(f"DROP ROLE {roles.SERVER_ROLE}")  # type: ignore[arg-type]
    # When it is made again, then the URL is the one that was kept
    assert await roles.make_serving_role(owner_url, tmp_path) == url
    assert (await _stored_password(owner_url)).startswith("SCRAM-SHA-256$")
    assert first.startswith("SCRAM-SHA-256$")


async def test_a_role_that_is_there_and_whose_url_is_not_is_not_touched(owner_url: str, tmp_path: Path) -> None:
    await roles.make_serving_role(owner_url, tmp_path / "one")
    before = await _stored_password(owner_url)
    with pytest.raises(SettingsError, match="LIKEWISE_DATABASE_SERVING_URL"):
        await roles.make_serving_role(owner_url, tmp_path / "other")
    assert await _stored_password(owner_url) == before
    assert not (tmp_path / "other" / roles.URL_FILE).exists()


async def test_an_owner_who_may_make_no_roles_hears_the_mend(owner_url: str, tmp_path: Path) -> None:
    plain = psycopg.conninfo.make_conninfo(owner_url, user="likewise_owner", dbname="likewise")
    with pytest.raises(SettingsError, match="plain role"):
        await roles.make_serving_role(plain, tmp_path)
