"""Brings one model from its files to service, and keeps trying while it cannot."""

import asyncio
import contextlib
import importlib
import itertools
import math
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextvars import Context
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar

from likewise.embedding.batching import Batcher
from likewise.embedding.files import weights
from likewise.embedding.files.torch_folder import TorchFolder
from likewise.embedding.memory import ModelMemory, needed_by
from likewise.embedding.models import ModelSpec, as_read, size_fault
from likewise.embedding.provider import Provider
from likewise.embedding.queue import QueueBudget
from likewise.embedding.runtimes import PROVIDERS, runtime_of
from likewise.errors import LikewiseError, ModelUnavailable, NotSupported
from likewise.observe.logs import get_logger
from likewise.progress import in_mebibytes, progress
from likewise.settings import Settings

log = get_logger(__name__)

LOCAL_RETRY_SECONDS = 2.0
LONGEST_RETRY_SECONDS = 60.0  # to load files again that are as they were; from the wait above it doubles
NETWORK_RETRY_SECONDS = (30.0, 600.0)  # first and longest wait; it doubles
PATIENCE_SECONDS = 8.0  # for files that are here: half a second on two idle cores, some seconds on busy ones
ONE_USE_SECONDS = 90.0  # for who loads a model for one use, and would have to begin anew: gigabytes on a slow disk

REMOTE_PROVIDER = "likewise.embedding.providers.openai"

State = Literal["absent", "present", "loading", "ready", "failed"]

# by the error's code; every other one needs somebody to look
_STATES: Mapping[str, State] = {
    "weights_absent": "absent",
    "model_unavailable": "absent",
    "weights_fetching": "loading",
    "model_memory": "present",
}

_uses = itertools.count(1)


class Loaded(Protocol):
    """What a model is once it is loaded; `fault` says why it cannot work now."""

    @property
    def fault(self) -> str | None: ...

    async def close(self) -> None:
        """Let go of memory and threads."""
        ...


class Serving(Protocol):
    """What shares a loaded model out among its callers."""

    @property
    def busy(self) -> bool: ...

    async def close(self) -> None:
        """Fail what waits, and end what runs."""
        ...


P = TypeVar("P", bound=Loaded)
S = TypeVar("S", bound=Serving)


@dataclass(frozen=True)
class Making(Generic[P, S]):
    """How one sort of models comes to service: by an address, from a folder's files, and for many callers.

    `weights` are the files of a folder that a model's memory is judged by.
    """

    remote: Callable[[ModelSpec], P]
    local: Callable[[ModelSpec, Path, Settings], P]
    weights: Callable[[Path], Iterable[Path]]
    serve: Callable[[P, QueueBudget, str], S]


def _remote_provider(spec: ModelSpec) -> Provider:
    provider: Provider = importlib.import_module(REMOTE_PROVIDER).load(spec)
    return provider


def _local_provider(spec: ModelSpec, folder: Path, settings: Settings) -> Provider:
    if fault := size_fault(spec, spec.dimension, settings):
        raise ModelUnavailable(fault, code="vector_size")
    runtime = runtime_of(spec.architecture, spec.runtime, settings.device)
    provider: Provider = importlib.import_module(PROVIDERS[runtime]).load(spec, folder, settings)
    return provider


def _weights(folder: Path) -> Iterable[Path]:
    return TorchFolder.read(folder).weights.values()  # it reads what has a graph, too


EMBEDDING: Making[Provider, Batcher] = Making(_remote_provider, _local_provider, _weights, Batcher)


@dataclass(frozen=True)
class ModelState:
    """How it stands with one model. `present`: its files are here, and nobody has asked for it yet.

    `public_detail` is the reason for callers over the network, where it is another.
    """

    name: str
    state: State
    reason: str | None = None
    public_detail: str | None = None


@dataclass(frozen=True)
class _Failure:
    """Why these files could not be loaded; as long as they are the same, it is not tried again before then."""

    error: LikewiseError
    files: frozenset[tuple[str, int, int]]
    until: float


class Slot(Generic[P, S]):
    """One model's place in this process: empty, loading, or in service.

    `factory` makes the model in place of its files or address. With `wait_for_models` callers wait for as long as the
    model is on its way and see on stderr how far it is, as suits a program; a server's callers are told to come again.
    """

    def __init__(
        self,
        spec: ModelSpec,
        settings: Settings,
        budget: QueueBudget,
        memory: ModelMemory,
        making: Making[P, S],
        factory: Callable[[ModelSpec], P] | None = None,
        *,
        wait_for_models: bool = False,
    ) -> None:
        self.spec = spec
        self.provider: P | None = None
        self.batcher: S | None = None
        self.used = 0  # by a counter of all slots: whose is largest was used last
        self._settings = settings
        self._budget = budget
        self._memory = memory
        self._making = making
        self._users = 0
        self._factory = factory
        self._error: LikewiseError | None = None
        self._failure: _Failure | None = None
        self._wait = LOCAL_RETRY_SECONDS
        self._fetch_allowed = False
        self._fetch_at = 0.0
        self._fetch_wait = NETWORK_RETRY_SECONDS[0]
        self._waits = wait_for_models
        self._settled = asyncio.Event()  # in service, failed, or being fetched, which takes long
        self._ended = asyncio.Event()  # in service or failed
        self._stopping = threading.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def state(self) -> ModelState:
        """How it stands."""
        if self.provider is not None:
            fault = self.provider.fault
            return ModelState(self.spec.name, "failed" if fault else "ready", fault)
        if self._error is None:
            return ModelState(self.spec.name, "loading" if self._task else "present")
        error = self._error
        return ModelState(self.spec.name, _STATES.get(error.code, "failed"), error.detail, error.public_detail)

    def begin(self, *, fetch: bool = False) -> None:
        """Start loading in the background, and go on until it works; `fetch` allows the network."""
        self._fetch_allowed = self._fetch_allowed or (fetch and not self._settings.offline)
        if self._task is None:
            self._error = None
            self._settled.clear()
            self._ended.clear()
            # In no request's context: it goes on after the one that happened to ask first.
            self._task = asyncio.create_task(self._load_until_ready(), context=Context())

    async def ready(self, patience: float | None = None) -> tuple[P, S]:
        """The model in service. Waits while files on this machine are being loaded.

        `patience` is in seconds, PATIENCE_SECONDS by default; after that ModelUnavailable, and loading goes on. With
        `wait_for_models` who names none waits until the model has come or failed, also while it is being fetched.
        """
        waits = self._waits and patience is None
        seconds = PATIENCE_SECONDS if patience is None else patience
        with self.held():
            self.begin()
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
        """Keeps the model loaded for as long as this is open, once it is."""
        self._users += 1
        self.used = next(_uses)
        try:
            yield
        finally:
            self._users -= 1
            self.used = next(_uses)
            self._memory.released()

    @property
    def idle(self) -> bool:
        """Whether the model is loaded, nobody holds it, and no text waits or is in it."""
        return self._users == 0 and self.batcher is not None and not self.batcher.busy

    async def unload(self) -> None:
        """Let an idle model go; for who asks for it next it is loaded again."""
        provider, batcher = self.provider, self.batcher
        self.provider = self.batcher = self._task = None
        log.info("model_unloaded", model=self.spec.name)
        if batcher is not None:
            await batcher.close()
        if provider is not None:
            await provider.close()

    async def close(self) -> None:
        """Stop loading, fail what waits, let the model go."""
        self._stopping.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.batcher is not None:
            await self.batcher.close()
        if self.provider is not None:
            await self.provider.close()

    async def _load_until_ready(self) -> None:
        while self.provider is None:
            try:
                provider = await self._open()
                self.batcher = self._making.serve(provider, self._budget, self.spec.name)
                self.provider, self._error = provider, None
            except Exception as error:  # noqa: BLE001 - a provider may raise anything
                self._note(self._named(error))
            self._settled.set()
            self._ended.set()
            if self._error is not None and self._error.code == "model_memory":
                self._task = None  # who asks next has it tried again; nobody else wants it
                return
            if self.provider is None:
                await asyncio.sleep(LOCAL_RETRY_SECONDS)

    async def _open(self) -> P:
        factory = self._factory
        if factory is not None:
            needed = getattr(factory, "memory_bytes", 0)
            return await self._within_memory(needed, lambda: _made_by(factory, self.spec))
        if self.spec.endpoint is not None:
            # Reading the certificates of all authorities takes some 50 ms.
            return await asyncio.to_thread(self._making.remote, self.spec)
        folder = await asyncio.to_thread(weights.locate, self.spec, self._settings)
        if folder is None:
            folder = await self._fetch()
        files = await asyncio.to_thread(_signature, folder, self._settings)
        self._refuse_known_failure(files)
        self._settled.clear()
        self._ended.clear()
        try:
            if self.spec.folder is not None and not self.spec.dimension:  # it was not there when we looked first
                self.spec = await asyncio.to_thread(as_read, self.spec, folder)
            needed = await asyncio.to_thread(self._needed, folder)
            return await self._within_memory(needed, lambda: self._load(folder))
        except Exception as error:  # noqa: BLE001 - a provider may raise anything
            raise self._remembered(self._named(error), files) from None

    async def _within_memory(self, needed: int, load: Callable[[], Awaitable[P]]) -> P:
        await self._memory.take(self, needed)
        try:
            return await load()
        except BaseException:
            self._memory.give_back(self)
            raise

    async def _fetch(self) -> Path:
        missing = weights.absent(self.spec, self._settings)
        if not self._fetch_allowed or self.spec.folder is not None or time.monotonic() < self._fetch_at:
            # An earlier one of the same tells what was tried besides.
            raise self._error if self._error is not None and self._error.code == missing.code else missing
        self._error = ModelUnavailable(f"{self.spec.name} is being fetched.", code="weights_fetching", retry_after=10)
        self._settled.set()
        self._ended.clear()
        try:
            what = f"Fetching {self.spec.name}"
            with progress(
                f"{what} (MiB)", quiet=not self._waits, once=f"{what}, which is kept for the next time."
            ) as report:
                shown = in_mebibytes(report)

                def watch(done: int, total: int | None) -> None:
                    if self._stopping.is_set():
                        raise ModelUnavailable("not wanted any more")
                    shown(done, total)

                return await _in_thread(lambda: weights.obtain(self.spec, self._settings, watch))
        finally:
            self._fetch_at = time.monotonic() + self._fetch_wait
            self._fetch_wait = min(2 * self._fetch_wait, NETWORK_RETRY_SECONDS[1])

    def _needed(self, folder: Path) -> int:
        """About how many bytes the model will take; 0 of one that cannot be read, as loading it tells why."""
        with contextlib.suppress(LikewiseError):
            return needed_by(self.spec, self._making.weights(folder), self._settings)
        return 0

    async def _load(self, folder: Path) -> P:
        return await asyncio.to_thread(self._making.local, self.spec, folder, self._settings)

    def _refuse_known_failure(self, files: frozenset[tuple[str, int, int]]) -> None:
        """Do not read 90 MB every other second to find again that they are the wrong ones."""
        failure = self._failure
        if failure is None or failure.files != files:
            self._wait = LOCAL_RETRY_SECONDS
        elif time.monotonic() < failure.until:
            raise failure.error
        self._failure = None

    def _remembered(self, error: LikewiseError, files: frozenset[tuple[str, int, int]]) -> LikewiseError:
        """What the files themselves are is so until they change; anything else may be over soon."""
        if error.code == "model_memory":
            return error
        until = math.inf if _of_the_files(error) else time.monotonic() + self._wait
        self._failure = _Failure(error, files, until)
        self._wait = min(2 * self._wait, LONGEST_RETRY_SECONDS)
        return error

    def _named(self, error: Exception) -> LikewiseError:
        if isinstance(error, LikewiseError):
            return error
        log.error("model_load_failed", model=self.spec.name, error=error)
        return ModelUnavailable(f"{self.spec.name} could not be loaded ({type(error).__name__}).", code="failed")

    def _note(self, error: LikewiseError) -> None:
        if self._error is None or error.detail != self._error.detail:
            log.warning("model_unavailable", model=self.spec.name, reason=error.detail)
        self._error = error


async def _made_by(factory: Callable[[ModelSpec], P], spec: ModelSpec) -> P:
    return factory(spec)


def _of_the_files(error: LikewiseError) -> bool:
    """Whether what is in the files is wrong, and not the reading of them or what they need besides."""
    if isinstance(error.__cause__, OSError):
        return False
    return isinstance(error, NotSupported) or error.code.startswith("weights_")


def _signature(folder: Path, settings: Settings) -> frozenset[tuple[str, int, int]]:
    signed = set()
    for path in weights.deciding_files(folder, settings):
        with contextlib.suppress(OSError):  # it went in between
            facts = path.stat()
            signed.add((str(path), facts.st_size, facts.st_mtime_ns))
    return frozenset(signed)


async def _in_thread(work: Callable[[], Path]) -> Path:
    """Run in a thread that nobody has to wait for when the process ends."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Path] = loop.create_future()

    def settle(result: Path | None, error: BaseException | None) -> None:
        if future.done():
            return
        if result is not None:
            future.set_result(result)
        elif error is not None:
            future.set_exception(error)

    def run() -> None:
        try:
            outcome: tuple[Path | None, BaseException | None] = (work(), None)
        except Exception as error:  # noqa: BLE001 - it is raised on the other side
            outcome = (None, error)
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, name="likewise-fetch", daemon=True).start()
    return await future
