"""Likewise for programs: the same services that the server's routes use."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar, Unpack

from likewise.apps.app import App, kinds_of, tasks_of
from likewise.apps.body import checked
from likewise.apps.collections.schemas import CollectionIn, RecordIn, SearchIn
from likewise.apps.collections.service import (
    CollectionsService,
    CollectionView,
    RecordView,
    SearchResult,
    WriteResult,
    refuse_repeats,
)
from likewise.apps.embed.usage import GroupBy, UsageReport, UsageService
from likewise.apps.jobs.service import JobsService
from likewise.apps.registry import APPS
from likewise.cleaning import cleaned, cleaned_json, is_json
from likewise.db import migrate, waiting
from likewise.embedding.embedder import Embedded, Embedder
from likewise.embedding.loading import ModelState
from likewise.errors import Conflict, Fault, Invalid, LikewiseError, NotFound, StartError
from likewise.ingest.writer import NOT_JSON, refuse_unstorable
from likewise.kind import BATCH, NewRecord, Policy
from likewise.runtime import Runtime, open_runtime
from likewise.search.options import SearchKeywords, SearchOptions
from likewise.settings import Settings, load_settings

# A few texts are done in an instant; many need not be counted more often than each second.
FIRST_LOOK_SECONDS, LOOK_SECONDS = 0.05, 1.0
# The database has answered already; what is waited for here is a connection of ours that is free.
ASK_SECONDS = 1.0
HEALTH_SECONDS = 1.0

S = TypeVar("S")
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Health:
    """What is wrong with each part, None where nothing is. `oldest_waiting` is in seconds.

    `model_public_detail` is the model's fault for callers over the network, where it is another, and so is that of the
    reranker, which has none where the settings name none.
    """

    database: str | None
    schema: str | None
    model: str | None
    oldest_waiting: float
    cache: str | None = None
    model_public_detail: str | None = None
    issuer: str | None = None
    reranker: str | None = None
    reranker_public_detail: str | None = None


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
        self._asking = asyncio.Lock()
        self._asked: Health | None = None
        self._ask_again = 0.0

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
        """The one tenant of a Likewise without authentication."""
        if self._tenant is None:
            self._tenant = await self.runtime.tenant()
        return self._tenant

    async def embed(self, texts: Sequence[str], model: str | None = None) -> Embedded:
        """The vectors of texts, float32 (n, d) of unit length, with tokens read and cut off, and cost."""
        return await self.embedder.embed(await self.tenant(), texts, model=model)

    async def usage(
        self, since: datetime | None = None, until: datetime | None = None, group_by: GroupBy = "model"
    ) -> UsageReport:
        """Texts, tokens and US dollars of the hours from `since` on that began before `until`; of 30 days by default.

        Invalid if `since` is not before `until`, or, by the hour, for more than 366 days.
        """
        return await self.service(UsageService).report(await self.tenant(), since, until, group_by)

    def collection(self, name: str) -> "Collection":
        """A collection by name; it is made when something is first added to it."""
        return Collection(self, name)

    async def health(self) -> Health:
        """How each part is; the database as of a second ago at most: any number of probes cost it no more than one."""
        async with self._asking:
            if self._asked is None or time.monotonic() >= self._ask_again:
                self._asked = await self._ask_database()
                self._ask_again = time.monotonic() + HEALTH_SECONDS
            asked = self._asked
        # An answer is believed, whatever is said of the server; what a write met is not seen by asking.
        fault = (asked.database and self.runtime.server_away) or asked.database or self.runtime.pool.storage_fault
        model, public_detail = self._model_fault()
        cache = self.embedder.cache_fault
        issuer = self.runtime.authentication.issuer_fault
        faults = replace(
            asked, database=fault, model=model, model_public_detail=public_detail, cache=cache, issuer=issuer
        )
        reranker, public_detail = self._reranker_fault()
        return replace(faults, reranker=reranker, reranker_public_detail=public_detail)

    async def _ask_database(self) -> Health:
        """What can be told of the database and its schema."""
        try:
            await migrate.check(self.runtime.database.serving_url)
            return Health(None, None, None, await self._oldest_waiting())
        except StartError as error:
            return Health(None, error.detail, None, 0.0)
        except LikewiseError as error:
            return Health(error.detail, None, None, 0.0)

    async def _oldest_waiting(self) -> float:
        """In seconds; 0 while every connection is busy, which is no fault."""
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return max((await waiting.models(self.runtime.pool)).values(), default=0.0)
        except TimeoutError:
            return 0.0
        except LikewiseError as error:
            if error.code != "database_busy":
                raise
            return 0.0

    def _model_fault(self) -> tuple[str | None, str | None]:
        state = self.embedder.states()[0]
        if state.state == "ready":
            refused = self.runtime.admission.refused
            return next(iter(refused.values()), None), None
        return _fault_of("model", state)

    def _reranker_fault(self) -> tuple[str | None, str | None]:
        states = self.runtime.reranking.states() if self.settings.reranker else []
        return _fault_of("reranker", states[0]) if states and states[0].state != "ready" else (None, None)

    async def wait_until_embedded(self, collection: str, on_progress: OnProgress | None = None) -> None:
        """Until every content of a collection has its vector, or has failed; `on_progress` gets done and total."""
        pause = FIRST_LOOK_SECONDS
        while True:
            stats = await self.collections.stats(await self.tenant(), collection)
            if on_progress is not None:
                on_progress(stats["contents"] - stats["waiting"], stats["contents"])
            if stats["waiting"] == 0:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, LOOK_SECONDS)


class Collection:
    """One collection of the only tenant."""

    def __init__(self, likewise: Likewise, name: str) -> None:
        self._likewise = likewise
        self._service = likewise.collections
        self.name = name

    async def create(self, model: str | None = None, policy: Policy | None = None) -> CollectionView:
        """Make it, with a model and a policy; Conflict if it is there."""
        checked(CollectionIn, {"name": self.name})
        return await self._service.create(await self._likewise.tenant(), self.name, model, policy)

    async def add(self, records: Sequence[Mapping[str, Any] | NewRecord], *, wait: bool = True) -> WriteResult:
        """Store records: `{id, text, payload?, parent?, status?, occurred_at?}`, in batches of 500, each whole.

        Args:
            wait: whether to return only when they have their vectors; `failed` names those that can have none.

        Raises:
            Invalid: a record that is none, or two with one id; nothing is stored.
            ModelUnavailable: with `wait`, the records of this batch and those before it are stored, later ones not.
        """
        incoming = _checked_list(records)
        await self._ensure()
        tenant = await self._likewise.tenant()
        total = WriteResult(0, 0, 0)
        for start in range(0, len(incoming), BATCH):
            part = await self._service.write(tenant, self.name, incoming[start : start + BATCH], wait=wait)
            total = WriteResult(
                total.created + part.created,
                total.changed + part.changed,
                total.unchanged + part.unchanged,
                total.failed + _moved_by(start, part.failed),
            )
        return total

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
        """One record."""
        return await self._service.record(await self._likewise.tenant(), self.name, id)

    async def delete(self, id: str) -> None:
        """Remove one record."""
        await self._service.delete(await self._likewise.tenant(), self.name, id)

    async def stats(self) -> dict[str, Any]:
        """Counts, and the state of the vectors and their index."""
        return await self._service.stats(await self._likewise.tenant(), self.name)

    async def drop(self) -> None:
        """Remove the collection with everything in it."""
        await self._service.drop(await self._likewise.tenant(), self.name)

    async def _search(self, question: Mapping[str, str], options: SearchOptions) -> SearchResult:
        """Search as the HTTP API would, with its bounds."""
        named = {name: getattr(options, name) for name in SearchKeywords.__annotations__}
        given = {name: value for name, value in named.items() if value is not None}
        one = checked(SearchIn, {**question, **given})
        return await self._service.search(await self._likewise.tenant(), self.name, one.to_request())

    async def _ensure(self) -> None:
        try:
            await self._service.get(await self._likewise.tenant(), self.name)
        except NotFound:
            with contextlib.suppress(Conflict):
                await self.create()


def _fault_of(sort: str, state: ModelState) -> tuple[str, str | None]:
    """What is wrong with a model that is not ready, and the same for callers over the network, where it is another."""
    what = f"The {sort} {state.name} is {state.state}."
    return f"{what} {state.reason or ''}".strip(), state.public_detail and f"{what} {state.public_detail}"


def _moved_by(start: int, faults: Sequence[Fault]) -> list[Fault]:
    return [fault.moved("", lambda place: f"/{start + place}") for fault in faults]


def _checked_list(records: Sequence[Mapping[str, Any] | NewRecord]) -> list[NewRecord]:
    """All records, or Invalid before the first of them is stored."""
    if isinstance(records, str | Mapping) or not isinstance(records, Sequence):
        raise Invalid.at("", "Records come as a list, one of them as a list of one.", "wrong_type")
    incoming = [_record(one, place) for place, one in enumerate(records)]
    refuse_unstorable(incoming)
    refuse_repeats(incoming)
    return incoming


def _record(one: Mapping[str, Any] | NewRecord, place: int) -> NewRecord:
    """A record as the HTTP API would take it; Invalid with its place in the list if it is not one."""
    if isinstance(one, NewRecord):
        return one
    if not isinstance(one, Mapping):
        raise Invalid.at(f"/{place}", "A record is an object with an id and a text.", "wrong_type")
    if not is_json(one.get("payload", {})):
        raise Invalid.at(f"/{place}/payload", NOT_JSON)
    # The id keeps its form, and is refused if it cannot.
    mended = {name: value if name == "id" else cleaned_json(value) for name, value in one.items()}
    try:
        return checked(RecordIn, mended).to_record()
    except Invalid as error:
        raise error.moved("", f"/{place}") from None


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
    async with open_runtime(settings, kinds_of(rows), worker=worker, embedder=embedder) as runtime:
        yield Likewise(runtime, rows)
