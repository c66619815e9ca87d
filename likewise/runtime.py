"""The parts of one process: opened in order, and closed in reverse."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TypeVar

import psycopg
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from likewise.auth.authentication import Authentication
from likewise.auth.quotas import Quotas
from likewise.db import checkup, collections, idempotency, jobs, migrate, roles
from likewise.db.collections import RecentCollections
from likewise.db.failures import why_no_connection
from likewise.db.maintenance import Maintenance
from likewise.db.pool import Pool
from likewise.db.text_key import TextKeys
from likewise.db.transaction import ProgressReport
from likewise.db.usage import Bookkeeping
from likewise.embedding.embedder import Embedder
from likewise.embedding.models import refuse_other_size
from likewise.errors import LikewiseError, ServerStartError, SettingsError, StartError
from likewise.ingest.backlog import Backlog
from likewise.ingest.cache_invalidation import CacheInvalidation, notice_sealing
from likewise.ingest.notifications import TASKS, Notifications, WakeSignal
from likewise.ingest.tasks import Tasks
from likewise.ingest.worker import Worker
from likewise.ingest.writer import Writer
from likewise.kind import Kinds
from likewise.observe.logs import get_logger
from likewise.postgres.server import EmbeddedServer
from likewise.sealing import Sealing
from likewise.search.reranking import Rerankers
from likewise.search.searcher import Searcher
from likewise.settings import PREFIX, Settings
from likewise.stopping import stop
from likewise.vectors.admission import Admission
from likewise.vectors.stores.pgvector import PgvectorStore

# The tenant of a server that asks nobody who they are.
ONLY_TENANT = "default"
FLUSH_SECONDS = 2.0
# Requests with an Idempotency-Key and texts that wait sealed for a day, jobs for a month: a minute more does no harm.
FORGET_SECONDS = 60.0
MAX_FORGOTTEN = 10_000

T = TypeVar("T")

log = get_logger(__name__)


@dataclass(frozen=True)
class Database:
    """The URLs of the rows: the owner's (None where only the serving one is known), and the one that serves."""

    owner_url: str | None
    serving_url: str
    server: EmbeddedServer | None


class Runtime:
    """The open parts of one process.

    Args:
        kinds: those of the apps.
        keys: seal the texts that wait.
        notices: seals what processes tell each other.
    """

    def __init__(
        self,
        settings: Settings,
        kinds: Kinds,
        database: Database,
        pool: Pool,
        embedder: Embedder,
        keys: TextKeys,
        notices: Sealing,
    ) -> None:
        self.settings, self.database, self.pool, self.embedder = settings, database, pool, embedder
        self.kinds = kinds
        self.text_keys, self.sealing = keys, keys.sealing
        lease, wait = timedelta(seconds=settings.lease_seconds), embedder.wait_for_models
        self.store = store = PgvectorStore()
        self.admission = admission = Admission(pool, embedder)
        self.recent = recent = RecentCollections(pool)
        self.reranking = reranking = Rerankers(
            settings, embedder.ledger, embedder.budget, embedder.memory, wait_for_models=wait
        )
        self.notifications = notifications = Notifications(settings.database_direct_url or database.serving_url)
        self.wake_signal = wake = WakeSignal(notifications)
        self.cache_invalidation = invalidation = CacheInvalidation(notifications, embedder, notices)
        self.tasks = Tasks(pool, WakeSignal(notifications, TASKS), keys, lease=lease)
        backlog = Backlog(pool, settings.waiting_tokens)
        self.writer = Writer(pool, embedder, recent, backlog, keys, store, wake, invalidation)
        self.searcher = Searcher(pool, embedder, admission, store, recent, reranking, keys.sealing, kinds)
        self.worker = Worker(
            pool, embedder, admission, store, wake, keys.sealing, lease=lease, tries=settings.text_tries
        )
        self.authentication = Authentication(pool, settings, ONLY_TENANT)
        self.quotas = Quotas(settings.quota_tokens_per_minute)
        self.bookkeeping = Bookkeeping(pool, embedder.ledger)

    @property
    def storage_fault(self) -> str | None:
        """The fault of the storage: that it cannot bring the embedded Postgres back, or take a write."""
        server = self.database.server
        return (server.storage_fault if server else None) or self.pool.storage_fault

    @property
    def server_away(self) -> str | None:
        """The reason for which the embedded Postgres is away and could not be brought back."""
        return self.database.server.away if self.database.server else None

    async def tenant(self) -> int:
        """Return the one tenant of a server without authentication."""
        return await collections.tenant_named(self.pool, ONLY_TENANT)


@contextlib.asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """Open the database that a URL names, or an embedded one, which is upgraded by itself.

    Raises:
        StartError: it cannot be started or reached, or its schema does not fit.
    """
    if settings.database_url or settings.database_serving_url:
        database = await named_database(settings)
        await _reached(lambda: migrate.check(database.serving_url))
        yield database
        return
    server = await EmbeddedServer.start(settings.data_dir, postgres_bin=settings.postgres_bin)
    try:
        owner = server.url("likewise_owner")
        await _reached(lambda: migrate.upgrade(owner, server_role=roles.SERVER_ROLE))
        yield Database(owner, server.url(roles.SERVER_ROLE), server)
    finally:
        await server.close()


async def named_database(settings: Settings) -> Database:
    """Return the database that the settings name; SettingsError if a URL cannot be read, or nobody serves it as yet."""
    _refuse_unreadable_urls(settings)
    serving = settings.database_serving_url or roles.stored_serving_url(settings.data_dir)
    if serving is None:
        await _refuse_unreachable(settings.database_url or "")
        raise SettingsError(
            "There is no role to serve as yet. Run `likewise db upgrade`, or set LIKEWISE_DATABASE_SERVING_URL."
        )
    return Database(settings.database_url, serving, None)


async def _refuse_unreachable(owner_url: str) -> None:
    try:
        async with checkup.connected(owner_url):
            return
    except psycopg.Error as error:
        why, name = why_no_connection(error), f"{PREFIX}DATABASE_URL"
        raise ServerStartError(
            f"The database of {name} cannot be reached: {why.what}. {why.fix.format(name=name)}"
        ) from None


async def upgrade_database(settings: Settings, report: ProgressReport | None = None) -> list[str]:
    """Bring the schema up to date, and return the names of the steps applied; `report` hears how far it is."""
    if settings.database_url is None:
        if settings.database_serving_url is not None:
            raise SettingsError("Upgrading needs the owner of the schema. Set LIKEWISE_DATABASE_URL.")
        server = await EmbeddedServer.start(settings.data_dir, postgres_bin=settings.postgres_bin)
        try:
            local = server.url("likewise_owner")
            return await _reached(lambda: migrate.upgrade(local, server_role=roles.SERVER_ROLE, report=report))
        finally:
            await server.close()
    _refuse_unreadable_urls(settings)
    owner = settings.database_url
    serving = settings.database_serving_url
    if serving is None:
        serving = await _reached(lambda: roles.make_serving_role(owner, settings.data_dir))
    role = roles.role_of(serving)
    return await _reached(lambda: migrate.upgrade(owner, server_role=role, report=report))


def _refuse_unreadable_urls(settings: Settings) -> None:
    urls = {
        f"{PREFIX}DATABASE_URL": settings.database_url,
        f"{PREFIX}DATABASE_SERVING_URL": settings.database_serving_url,
        f"{PREFIX}DATABASE_DIRECT_URL": settings.database_direct_url,
        f"What {roles.URL_FILE} in the data folder holds": roles.stored_serving_url(settings.data_dir),
    }
    for name, url in urls.items():
        try:
            conninfo_to_dict(url or "")
        except (ProgrammingError, ValueError):
            # The driver's own words quote the URL, and with it a password.
            raise SettingsError(
                f"{name} is not the URL of a database. Write it as postgresql://user:password@host:5432/database."
            ) from None


@contextlib.asynccontextmanager
async def open_runtime(settings: Settings, kinds: Kinds, embedder: Embedder, *, worker: bool) -> AsyncIterator[Runtime]:
    """Open all parts of one process, with its background work.

    Args:
        kinds: those of the apps.
        worker: whether this process also embeds what waits.
    """
    default = embedder.known()
    # Of a folder that is not there nobody knows it.
    if settings.vector_size is not None and default.dimension:
        refuse_other_size(default.hub_id, default.dimension, settings.vector_size)
    async with contextlib.AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(settings))
        pool = await _reached(Pool(database.serving_url, max_size=settings.database_connections).open)
        stack.push_async_callback(pool.close)
        await _reached(pool.refuse_power)
        text_keys = await _reached(lambda: TextKeys.open(settings, pool))
        notice_keys = await _reached(lambda: notice_sealing(pool))
        runtime = Runtime(settings, kinds, database, pool, embedder, text_keys, notice_keys)
        stack.push_async_callback(runtime.authentication.close)
        # Before the pool, and after all that may still be embedding.
        stack.push_async_callback(runtime.bookkeeping.close)
        await runtime.embedder.start()
        stack.push_async_callback(runtime.embedder.close)
        stack.push_async_callback(runtime.notifications.close)
        await runtime.notifications.start()
        await runtime.reranking.start()
        stack.push_async_callback(runtime.reranking.close)
        stack.push_async_callback(_flush_once, runtime)
        stack.push_async_callback(runtime.writer.close)
        await stack.enter_async_context(_background(_tasks(runtime, worker=worker)))
        yield runtime


def _tasks(runtime: Runtime, *, worker: bool) -> list[Callable[[], Awaitable[None]]]:
    tasks: list[Callable[[], Awaitable[None]]] = [
        lambda: _flush(runtime),
        lambda: _forget(runtime),
        runtime.writer.backlog.run,
        runtime.cache_invalidation.run,
    ]
    if worker:
        tasks.extend([runtime.worker.run, runtime.tasks.run])
    if runtime.database.owner_url is not None:
        tasks.append(Maintenance(runtime.database.owner_url).run)
    return tasks


@contextlib.asynccontextmanager
async def _background(work: list[Callable[[], Awaitable[None]]]) -> AsyncIterator[None]:
    """Run work beside the block; what fails is logged and started again, so that one fault ends nothing else."""
    tasks = [asyncio.ensure_future(_kept_up(one)) for one in work]
    try:
        yield
    finally:
        await stop(tasks)


async def _kept_up(work: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - the last place that can keep the process's work going
            log.error("background_failed", error=error)
        await asyncio.sleep(1.0)


async def _flush(runtime: Runtime) -> None:
    while True:
        await asyncio.sleep(FLUSH_SECONDS)
        await _flush_once(runtime)


async def _forget(runtime: Runtime) -> None:
    while True:
        await asyncio.sleep(FORGET_SECONDS)
        for forget in (idempotency.forget_expired, jobs.expire, jobs.forget_ended):
            while await forget(runtime.pool, MAX_FORGOTTEN) >= MAX_FORGOTTEN:
                pass


async def _flush_once(runtime: Runtime) -> None:
    averages = partial(runtime.writer.averages.flush, runtime.pool)
    for flush in (averages, runtime.authentication.flush, runtime.bookkeeping.flush):
        with contextlib.suppress(LikewiseError):
            await flush()


async def _reached(work: Callable[[], Awaitable[T]]) -> T:
    """Turn the error of a database that does not answer, or cannot do this, into a reason not to start."""
    try:
        return await work()
    except StartError:
        raise
    except LikewiseError as error:
        raise ServerStartError(
            f"{error.detail} See that Postgres runs and that LIKEWISE_DATABASE_URL is right."
        ) from None
