"""Models in service: each is loaded from its files or opened at its address when it is first asked for."""

import asyncio
import contextlib
import importlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextvars import Context
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar

from likewise.backoff import Backoff
from likewise.embedding.batching import Batcher
from likewise.embedding.files import weights
from likewise.embedding.files.torch_folder import TorchFolder
from likewise.embedding.memory import ModelMemory, needed_by
from likewise.embedding.models import ModelSpec, as_read, size_fault
from likewise.embedding.provider import Provider
from likewise.embedding.providers import openai
from likewise.embedding.queue import QueueBudget
from likewise.embedding.runtimes import PROVIDERS, runtime_of
from likewise.errors import LikewiseError, ModelUnavailable, NotSupported
from likewise.observe.logs import get_logger
from likewise.settings import Settings

log = get_logger(__name__)

LOCAL_RETRY_SECONDS = 2.0
MAX_RETRY_SECONDS = 60.0  # to load files again that are as they were; from the pause above it doubles
PATIENCE_SECONDS = 8.0  # for files that are here: half a second on two idle cores, some seconds on busy ones
ONE_USE_SECONDS = 90.0  # for programs that load a model for one use, and would begin anew: gigabytes on a slow disk

State = Literal["absent", "present", "loading", "ready", "failed"]

# by the error's code; every other one needs somebody to look
_STATES: Mapping[str, State] = {
    "weights_absent": "absent",
    "model_unavailable": "absent",
    "weights_fetching": "loading",
    "model_memory": "present",
}

_uses = itertools.count(1)


class LoadedModel(Protocol):
    """A model of any sort once it is loaded; `fault` says why it cannot work now."""

    @property
    def fault(self) -> str | None: ...

    async def close(self) -> None:
        """Let go of memory and threads."""
        ...


class Dispatcher(Protocol):
    """The queue that shares a loaded model among its callers."""

    @property
    def busy(self) -> bool: ...

    async def close(self) -> None:
        """Fail what waits, and end what runs."""
        ...


P = TypeVar("P", bound=LoadedModel)
S = TypeVar("S", bound=Dispatcher)


@dataclass(frozen=True)
class ModelLoader(Generic[P, S]):
    """The steps that bring one sort of models to service.

    `remote` opens an address, `local` loads a folder; `weights` are the files of a folder by which the memory of a
    model is estimated; `serve` shares a loaded model among its callers.
    """

    remote: Callable[[ModelSpec], P]
    local: Callable[[ModelSpec, Path, Settings], P]
    weights: Callable[[Path], Iterable[Path]]
    serve: Callable[[P, QueueBudget, str], S]


def _local_provider(spec: ModelSpec, folder: Path, settings: Settings) -> Provider:
    if fault := size_fault(spec, spec.dimension, settings):
        raise ModelUnavailable(fault, code="vector_size")
    runtime = runtime_of(spec.architecture, spec.runtime, settings.device)
    provider: Provider = importlib.import_module(PROVIDERS[runtime]).load(spec, folder, settings)
    return provider


def _weights(folder: Path) -> Iterable[Path]:
    return TorchFolder.read(folder).weights.values()  # it reads folders that have a graph, too


EMBEDDING: ModelLoader[Provider, Batcher] = ModelLoader(openai.load, _local_provider, _weights, Batcher)


# For callers over the network, where the reason is one of files.
NOT_IN_SERVICE = "The model is not in service; the server's log and `likewise doctor` say why."


@dataclass(frozen=True)
class ModelState:
    """The state of one model, with its reason. `present`: its files are here, and nobody has asked for it yet.

    `public_detail` is the reason for callers over the network, where it is another.
    """

    name: str
    state: State
    reason: str | None = None
    public_detail: str | None = None


@dataclass(eq=False)
class ModelPool(Generic[P, S]):
    """The models of one sort in this process, by name.

    `factories` make models in place of their files or addresses. With `wait_for_models` callers wait for a model that
    is on its way, and stderr tells how far it is, as suits a program; callers of a server are told to come again.
    """

    settings: Settings
    loader: ModelLoader[P, S]
    budget: QueueBudget
    memory: ModelMemory
    _: KW_ONLY
    factories: Mapping[str, Callable[[ModelSpec], P]] = field(default_factory=dict)
    wait_for_models: bool
    closed: bool = field(default=False, init=False)
    _handles: dict[str, "ModelHandle[P, S]"] = field(default_factory=dict, init=False)

    def handle(self, spec: ModelSpec) -> "ModelHandle[P, S]":
        """Return the handle of a model, which is not loaded by that."""
        if spec.name not in self._handles:
            self._handles[spec.name] = ModelHandle(spec, self)
        return self._handles[spec.name]

    def loaded(self, name: str) -> P | None:
        """Return the model of this name, if it is loaded."""
        return self._handles[name].provider if name in self._handles else None

    def state(self, spec: ModelSpec, refuse: Callable[[ModelSpec], object] | None = None) -> ModelState:
        """Return a model's state; `refuse` raises for local models that cannot run here."""
        if spec.name in self._handles:
            return self._handles[spec.name].state
        if spec.endpoint is not None:
            return ModelState(spec.name, "present")
        try:
            if refuse is not None:
                refuse(spec)
        except LikewiseError as error:
            return ModelState(spec.name, "failed", error.detail)
        if spec.name in self.factories or weights.locate(spec, self.settings) is not None:
            return ModelState(spec.name, "present")
        return ModelState(spec.name, "absent", weights.absent(spec, self.settings).detail)

    async def close(self) -> None:
        """Fail what waits and let the models go; none is loaded afterwards."""
        self.closed = True
        await asyncio.gather(*(handle.close() for handle in self._handles.values()))


class ModelHandle(Generic[P, S]):
    """One model's place in this process: empty, loading, or in service."""

    def __init__(self, spec: ModelSpec, pool: ModelPool[P, S]) -> None:
        self.spec = spec
        self.provider: P | None = None
        self.batcher: S | None = None
        self.used = 0  # by a counter of all handles: the largest was used last
        self._pool = pool
        self._settings = pool.settings
        self._users = 0
        self._error: LikewiseError | None = None
        self._fetch = weights.WeightsFetch(spec, pool.settings, shown=pool.wait_for_models)
        self._known_failure = weights.KnownFailure(Backoff(LOCAL_RETRY_SECONDS, MAX_RETRY_SECONDS))
        self._settled = asyncio.Event()  # in service, failed, or being fetched, which takes long
        self._ended = asyncio.Event()  # in service or failed
        self._task: asyncio.Task[None] | None = None

    @property
    def state(self) -> ModelState:
        """The model's state."""
        if self.provider is not None:
            fault = self.provider.fault
            return ModelState(self.spec.name, "failed" if fault else "ready", fault)
        if self._error is None:
            return ModelState(self.spec.name, "loading" if self._task else "present")
        error = self._error
        return ModelState(self.spec.name, _STATES.get(error.code, "failed"), error.detail, error.public_detail)

    def begin(self, *, fetch: bool = False) -> None:
        """Start loading in the background, and go on until it works; `fetch` allows the network."""
        self._fetch.allowed = self._fetch.allowed or (fetch and not self._settings.offline)
        if self._task is None and not self._pool.closed:
            self._error = None
            self._settled.clear()
            self._ended.clear()
            # In no request's context: it goes on after the one that happened to ask first.
            self._task = asyncio.create_task(self._load_until_ready(), context=Context())

    async def ready(self, patience: float | None = None) -> tuple[P, S]:
        """Return the model in service and its queue, after loading files that are on this machine.

        `patience` is in seconds, PATIENCE_SECONDS by default; after that ModelUnavailable, and loading goes on. With
        `wait_for_models` a caller that names none waits until the model has come or failed, also while it is fetched.
        """
        waits = self._pool.wait_for_models and patience is None
        seconds = PATIENCE_SECONDS if patience is None else patience
        with self.held():
            self.begin()
            if self._pool.closed:
                raise _shutting_down()
            try:
                async with asyncio.timeout(None if waits else seconds):
                    await (self._ended if waits else self._settled).wait()
            except TimeoutError:
                raise ModelUnavailable(f"{self.spec.name} is still being loaded.", retry_after=2) from None
            if self.provider is None or self.batcher is None:
                error = self._error
                raise ModelUnavailable.because(error, 2) if error else ModelUnavailable(retry_after=2)
            return self.provider, self.batcher

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep the model loaded for as long as this is open, once it is."""
        self._users += 1
        self.used = next(_uses)
        try:
            yield
        finally:
            self._users -= 1
            self.used = next(_uses)
            self._pool.memory.released()

    @contextlib.asynccontextmanager
    async def in_service(self) -> AsyncIterator[tuple[P, S]]:
        """Hold the model, and yield it in service with its queue; errors as `ready`."""
        with self.held():
            yield await self.ready()

    @property
    def idle(self) -> bool:
        """True if the model is loaded, nobody holds it, and no text waits or is in it."""
        return self._users == 0 and self.batcher is not None and not self.batcher.busy

    async def unload(self) -> None:
        """Let an idle model go; the next call loads it again."""
        provider, batcher = self.provider, self.batcher
        self.provider = self.batcher = self._task = None
        log.info("model_unloaded", model=self.spec.name)
        if batcher is not None:
            await batcher.close()
        if provider is not None:
            await provider.close()

    async def close(self) -> None:
        """Stop loading, fail what waits, let the model go."""
        self._fetch.stop()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        # Who waits for as long as it takes waits for nothing any more.
        self._error = _shutting_down()
        self._settled.set()
        self._ended.set()
        if self.batcher is not None:
            await self.batcher.close()
        if self.provider is not None:
            await self.provider.close()

    async def _load_until_ready(self) -> None:
        while self.provider is None:
            try:
                provider = await self._open()
                self.batcher = self._pool.loader.serve(provider, self._pool.budget, self.spec.name)
                self.provider, self._error = provider, None
            except Exception as error:  # noqa: BLE001 - a provider may raise anything
                self._note(self._named(error))
            self._settled.set()
            self._ended.set()
            if self._error is not None and self._error.code == "model_memory":
                self._task = None  # the next caller has it tried again; nobody else wants it
                return
            if self.provider is None:
                await asyncio.sleep(LOCAL_RETRY_SECONDS)

    async def _open(self) -> P:
        factory = self._pool.factories.get(self.spec.name)
        if factory is not None:
            async with self._within_memory(getattr(factory, "memory_bytes", 0)):
                return factory(self.spec)
        if self.spec.endpoint is not None:
            # Reading the certificates of all authorities takes some 50 ms.
            return await asyncio.to_thread(self._pool.loader.remote, self.spec)
        folder = await asyncio.to_thread(weights.locate, self.spec, self._settings)
        return await self._load(await self._fetched() if folder is None else folder)

    async def _fetched(self) -> Path:
        missing = weights.absent(self.spec, self._settings)
        if not self._fetch.may_begin():
            # The error of an earlier fetch says more.
            raise self._error if self._error is not None and self._error.code == missing.code else missing
        self._error = ModelUnavailable(f"{self.spec.name} is being fetched.", code="weights_fetching", retry_after=10)
        self._settled.set()
        self._ended.clear()
        return await self._fetch.run()

    async def _load(self, folder: Path) -> P:
        files = await asyncio.to_thread(weights.signature, folder, self._settings)
        self._known_failure.refuse(files)
        self._settled.clear()
        self._ended.clear()
        try:
            if self.spec.folder is not None and not self.spec.dimension:  # it was not there when we looked first
                self.spec = await asyncio.to_thread(as_read, self.spec, folder)
            needed = await asyncio.to_thread(self._needed, folder)
            async with self._within_memory(needed):
                provider = await asyncio.to_thread(self._pool.loader.local, self.spec, folder, self._settings)
        except Exception as error:  # noqa: BLE001 - a provider may raise anything
            named = self._named(error)
            self._known_failure.remember(named)
            raise named from None
        self._known_failure.remember(None)
        return provider

    @contextlib.asynccontextmanager
    async def _within_memory(self, needed: int) -> AsyncIterator[None]:
        memory = self._pool.memory
        await memory.take(self, needed)
        try:
            yield
        except BaseException:
            memory.give_back(self)
            raise

    def _needed(self, folder: Path) -> int:
        """Estimate the bytes that the model will take; 0 for one that cannot be read, as loading it tells why."""
        with contextlib.suppress(LikewiseError):
            return needed_by(self.spec, self._pool.loader.weights(folder), self._settings)
        return 0

    def _named(self, error: Exception) -> LikewiseError:
        if isinstance(error, LikewiseError):
            return error
        log.error("model_load_failed", model=self.spec.name, error=error)
        return ModelUnavailable(f"{self.spec.name} could not be loaded ({type(error).__name__}).", code="failed")

    def _note(self, error: LikewiseError) -> None:
        if error.public_detail is None and (isinstance(error, NotSupported) or error.code.startswith("weights_")):
            # It names folders of this machine.
            error.public_detail = NOT_IN_SERVICE
        if self._error is None or error.detail != self._error.detail:
            log.warning("model_unavailable", model=self.spec.name, reason=error.detail)
        self._error = error


def _shutting_down() -> ModelUnavailable:
    return ModelUnavailable("The model is shutting down.")
