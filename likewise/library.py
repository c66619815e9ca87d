"""Likewise for programs: the same services that the server's routes use."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar, Unpack

from likewise.apps.checking import checked
from likewise.apps.collections.arrays import checked_records
from likewise.apps.collections.schemas import CollectionAnswer, CollectionIn, RecordView, SearchIn
from likewise.apps.collections.service import CollectionsService, SearchResult, WriteAnswer
from likewise.apps.embed.usage import GroupBy, UsageReport, UsageService
from likewise.apps.jobs.service import JobsService
from likewise.apps.registry import APPS, App, kinds_of, tasks_of
from likewise.backoff import Backoff
from likewise.cleaning import cleaned
from likewise.embedding.embedder import Embedded, Embedder
from likewise.health import Health, HealthReader
from likewise.kind import NewRecord, Policy
from likewise.runtime import Runtime, open_runtime
from likewise.search.options import SearchKeywords, SearchOptions
from likewise.settings import Settings, load_settings

# A few texts are done in an instant; many need not be counted more often than each second.
LOOK_AGAIN = Backoff(0.05, 1.0)

S = TypeVar("S")
OnProgress = Callable[[int, int], None]


class Likewise:
    """An open Likewise: its parts and the services of its apps."""

    def __init__(self, runtime: Runtime, apps: Sequence[App] = APPS) -> None:
        self.runtime = runtime
        self.apps = tuple(apps)
        self.settings = runtime.settings
        self.embedder: Embedder = runtime.embedder
        self._services = {app.name: self._started(app) for app in self.apps if app.service is not None}
        self._services["jobs"] = JobsService(runtime.pool, self.apps, runtime.wake_signal.send)
        self.collections = self.service(CollectionsService)
        self.jobs = self.service(JobsService)
        self._tenant: int | None = None
        self._health = HealthReader(runtime)

    def service(self, of: type[S]) -> S:
        """Return the service of this class; LookupError if no app that is open has one."""
        found = next((one for one in self._services.values() if isinstance(one, of)), None)
        if found is None:
            raise LookupError(f"No app that is open has a {of.__name__}.")
        return found

    def __getattr__(self, name: str) -> Any:
        """Return the service of an app by the app's name, as `lw.segments`."""
        if name not in self.__dict__.get("_services", ()):
            raise AttributeError(f"No app of the name {name} is open.")
        return self._services[name]

    def _started(self, app: App) -> Any:
        service = app.load(app.service or "")(self.runtime)
        for kind, handler in tasks_of(app, service).items():
            self.runtime.tasks.register(kind, handler)
        return service

    async def tenant(self) -> int:
        """Return the one tenant of a Likewise without authentication."""
        if self._tenant is None:
            self._tenant = await self.runtime.tenant()
        return self._tenant

    async def embed(self, texts: Sequence[str], model: str | None = None) -> Embedded:
        """Return the vectors of texts, float32 (n, d) of unit length, with tokens read and cut off, and cost."""
        return await self.embedder.embed(await self.tenant(), texts, model=model)

    async def usage(
        self, since: datetime | None = None, until: datetime | None = None, group_by: GroupBy = "model"
    ) -> UsageReport:
        """Return the usage of the hours from `since` on that began before `until`; by default of the last 30 days.

        Invalid if `since` is not before `until`, or, by the hour, for more than 366 days.
        """
        return await self.service(UsageService).report(await self.tenant(), since, until, group_by)

    def collection(self, name: str) -> "Collection":
        """Return a collection by name; it is made when something is first added to it."""
        return Collection(self, name)

    async def health(self) -> Health:
        """Return what is wrong with each part; the database as of a second ago at most."""
        return await self._health.read()

    async def wait_until_embedded(self, collection: str, on_progress: OnProgress | None = None) -> None:
        """Wait until every content of a collection has its vector, or has failed; `on_progress` gets done and total."""
        for pause in LOOK_AGAIN.pauses():
            stats = await self.collections.stats(await self.tenant(), collection)
            if on_progress is not None:
                on_progress(stats["contents"] - stats["waiting"], stats["contents"])
            if stats["waiting"] == 0:
                return
            await asyncio.sleep(pause)


class Collection:
    """One collection of the only tenant."""

    def __init__(self, likewise: Likewise, name: str) -> None:
        self._likewise = likewise
        self._service = likewise.collections
        self.name = name

    async def create(self, model: str | None = None, policy: Policy | None = None) -> CollectionAnswer:
        """Make the collection, with a model and a policy; Conflict if it is there."""
        checked(CollectionIn, {"name": self.name})
        return await self._service.create(await self._likewise.tenant(), self.name, model, policy)

    async def add(self, records: Sequence[Mapping[str, Any] | NewRecord], *, wait: bool = True) -> WriteAnswer:
        """Store records: `{id, text, payload?, parent?, status?, occurred_at?}`, in batches of 500, each whole.

        Args:
            wait: whether to return only when they have their vectors; `failed` names those that can have none.

        Raises:
            Invalid: a record that is none, or two with one id; nothing is stored.
            ModelUnavailable: with `wait`, the records of this batch and those before it are stored, later ones not.
        """
        incoming = checked_records(records)
        return await self._service.add(await self._likewise.tenant(), self.name, incoming, wait=wait)

    async def search(self, query: str, **options: Unpack[SearchKeywords]) -> SearchResult:
        """Return the records nearest to a query by words and meaning; `options` are the fields of SearchOptions.

        With `group_by` each value of a field has one hit; with `rerank` the reranker of the settings puts the first
        hits in order, 50 at least.
        """
        return await self._search({"query": cleaned(query)}, SearchOptions(**options))

    async def similar(self, id: str, **options: Unpack[SearchKeywords]) -> SearchResult:
        """Return the records most like one of the collection, itself left out; `options` as in `search`."""
        return await self._search({"like": id}, SearchOptions(**options))

    async def get(self, id: str) -> RecordView:
        """Return one record."""
        return await self._service.record(await self._likewise.tenant(), self.name, id)

    async def delete(self, id: str) -> None:
        """Remove one record."""
        await self._service.delete(await self._likewise.tenant(), self.name, id)

    async def stats(self) -> dict[str, Any]:
        """Return counts, and the state of the vectors and their index."""
        return await self._service.stats(await self._likewise.tenant(), self.name)

    async def drop(self) -> None:
        """Remove the collection with everything in it."""
        await self._service.drop(await self._likewise.tenant(), self.name)

    async def _search(self, question: Mapping[str, str], options: SearchOptions) -> SearchResult:
        """Search as the HTTP API would, with its bounds; only programs name views."""
        views = {"view", "fused_with"}
        named = {name: getattr(options, name) for name in SearchKeywords.__annotations__ if name not in views}
        given = {name: value for name, value in named.items() if value is not None}
        request = checked(SearchIn, {**question, **given}).to_request()
        request = replace(request, options=replace(request.options, view=options.view, fused_with=options.fused_with))
        return await self._service.search(await self._likewise.tenant(), self.name, request)


@contextlib.asynccontextmanager
async def open(  # noqa: A001 - `likewise.open()` is how it reads where it is used
    settings: Settings | None = None,
    *,
    worker: bool = True,
    embedder: Embedder | None = None,
    wait_for_models: bool = True,
    apps: Sequence[App] = (),
) -> AsyncIterator[Likewise]:
    """Open Likewise: embedded Postgres unless the settings name a database.

    Args:
        settings: read from the environment if absent.
        worker: whether this process embeds what waits.
        embedder: one to use in place of the settings' own, which has its own `wait_for_models`.
        wait_for_models: whether `embed`, `add` and `search` wait for a model that is being fetched or loaded, and show
            on stderr how far it is; without it they are refused until it is there, as a server's callers are.
        apps: further ones, beside those of Likewise.
    """
    settings, rows = settings or load_settings(), (*APPS, *apps)
    embedder = embedder or Embedder(settings, wait_for_models=wait_for_models)
    async with open_runtime(settings, kinds_of(rows), embedder, worker=worker) as runtime:
        yield Likewise(runtime, rows)
