"""One Postgres for the run, a database for each test, and a Likewise on it with a deterministic model."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

import likewise
from likewise.embedding.embedder import Embedder
from likewise.library import Likewise
from likewise.settings import Settings, load_settings
from likewise.testing import DatabaseUrls, FakeProvider, ThrowawayPostgres, throwaway_postgres

Opener = Callable[..., AbstractAsyncContextManager[Likewise]]


@pytest.fixture(scope="session")
async def postgres() -> AsyncIterator[ThrowawayPostgres]:
    """The server of this run."""
    async with throwaway_postgres() as server:
        yield server


@pytest.fixture
async def database(postgres: ThrowawayPostgres) -> AsyncIterator[DatabaseUrls]:
    """An empty database of the test's own."""
    async with postgres.database() as urls:
        yield urls


@pytest.fixture
def settings(database: DatabaseUrls, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings that name the test's database."""
    return load_settings(
        data_dir=tmp_path_factory.mktemp("data"), database_url=database.owner, database_serving_url=database.serving
    )


@pytest.fixture
def provider() -> FakeProvider:
    """The model of `open_likewise`; its knobs make trouble."""
    return FakeProvider()


@pytest.fixture
def open_likewise(settings: Settings, provider: FakeProvider) -> Opener:
    """Opens a Likewise on the test's database; more than one may be open."""

    @asynccontextmanager
    async def opener(**options: object) -> AsyncIterator[Likewise]:
        embedder = Embedder(settings, providers={settings.model: lambda spec: provider})
        async with likewise.open(settings, **{"embedder": embedder, **options}) as opened:
            yield opened

    return opener


@pytest.fixture
async def lw(open_likewise: Opener) -> AsyncIterator[Likewise]:
    """A Likewise on an empty database, with its worker."""
    async with open_likewise() as opened:
        yield opened
