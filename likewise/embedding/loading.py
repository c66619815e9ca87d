"""Brings one model from its files to service, and keeps trying while it cannot."""

import asyncio
import contextlib
import importlib
import itertools
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextvars import Context
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from likewise.embedding import weights
from likewise.embedding.batching import Batcher
from likewise.embedding.memory import ModelMemory, needed_by
from likewise.embedding.models import ModelSpec, as_read
from likewise.embedding.provider import Provider, ProviderFactory
from likewise.embedding.queue import QueueBudget
from likewise.embedding.runtimes import PROVIDERS, runtime_of
from likewise.errors import LikewiseError, ModelUnavailable, NotSupported
from likewise.settings import Settings

log = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class ModelState:
    """How it stands with one model. `present`: its files are here, and nobody has asked for it yet.

    `in_short` is the reason for callers over the network, where it is another.
    """

    name: str
    state: State
    reason: str | None = None
    in_short: str | None = None


@dataclass(frozen=True)
class _Failure:
    """Why these files could not be loaded; as long as they are the same, it is not tried again before then."""

    error: LikewiseError
    files: frozenset[tuple[str, int, int]]
    until: float


class Slot:
    """One model's place in this process: empty, loading, or in service."""

    def __init__(
        self,
        spec: ModelSpec,
        settings: Settings,
        budget: QueueBudget,
        memory: ModelMemory,
        factory: ProviderFactory | None = None,
    ) -> None:
        self.spec = spec
        self.provider: Provider | None = None
        self.batcher: Batcher | None = None
        self.used = 0  # by a counter of all slots: whose is largest was used last
        self._settings = settings
        self._budget = budget
        self._memory = memory
        self._users = 0
        self._factory = factory
        self._error: LikewiseError | None = None
        self._failure: _Failure | None = None
        self._wait = LOCAL_RETRY_SECONDS
        self._fetch_allowed = False
        self._fetch_at = 0.0
        self._fetch_wait = NETWORK_RETRY_SECONDS[0]
        self._settled = asyncio.Event()
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
        return ModelState(self.spec.name, _STATES.get(error.code, "failed"), error.detail, error.in_short)

    def begin(self, *, fetch: bool = False) -> None:
        """Start loading in the background, and go on until it works; `fetch` allows the network."""
        self._fetch_allowed = self._fetch_allowed or (fetch and not self._settings.offline)
        if self._task is None:
            self._error = None
            self._settled.clear()
            # In no request's context: it goes on after the one that happened to ask first.
            self._task = asyncio.create_task(self._load_until_ready(), context=Context())

    async def ready(self, patience: float = PATIENCE_SECONDS) -> tuple[Provider, Batcher]:
        """The model in service. Waits while files on this machine are being loaded, and for nothing else.

        `patience` is in seconds; after that ModelUnavailable, and loading goes on.
        """
        with self.held():
            self.begin()
            try:
                async with asyncio.timeout(patience):
                    await self._settled.wait()
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
        log.info("%s is let go, to make room for another model", self.spec.name)
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
                self.batcher = Batcher(provider, self._budget, self.spec.name)
                self.provider, self._error = provider, None
            except Exception as error:  # noqa: BLE001 - a provider may raise anything
                self._note(self._named(error))
            self._settled.set()
            if self._error is not None and self._error.code == "model_memory":
                self._task = None  # who asks next has it tried again; nobody else wants it
                return
            if self.provider is None:
                await asyncio.sleep(LOCAL_RETRY_SECONDS)

    async def _open(self) -> Provider:
        factory = self._factory
        if factory is not None:
            needed = getattr(factory, "memory_bytes", 0)
            return await self._within_memory(needed, lambda: _made_by(factory, self.spec))
        if self.spec.endpoint is not None:
            # Reading the certificates of all authorities takes some 50 ms.
            remote: Provider = await asyncio.to_thread(importlib.import_module(REMOTE_PROVIDER).load, self.spec)
            return remote
        folder = await asyncio.to_thread(weights.locate, self.spec, self._settings)
        if folder is None:
            folder = await self._fetch()
        files = await asyncio.to_thread(_signature, folder, self._settings)
        self._refuse_known_failure(files)
        self._settled.clear()
        try:
            if self.spec.folder is not None and not self.spec.dimension:  # it was not there when we looked first
                self.spec = await asyncio.to_thread(as_read, self.spec, folder)
            needed = await asyncio.to_thread(needed_by, self.spec, folder, self._settings)
            return await self._within_memory(needed, lambda: asyncio.to_thread(self._load, folder))
        except Exception as error:  # noqa: BLE001 - a provider may raise anything
            raise self._remembered(self._named(error), files) from None

    async def _within_memory(self, needed: int, load: Callable[[], Awaitable[Provider]]) -> Provider:
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
        try:
            return await _in_thread(lambda: weights.obtain(self.spec, self._settings, self._watch))
        finally:
            self._fetch_at = time.monotonic() + self._fetch_wait
            self._fetch_wait = min(2 * self._fetch_wait, NETWORK_RETRY_SECONDS[1])

    def _load(self, folder: Path) -> Provider:
        runtime = runtime_of(self.spec.architecture, self.spec.runtime, self._settings.device)
        provider: Provider = importlib.import_module(PROVIDERS[runtime]).load(self.spec, folder, self._settings)
        return provider

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
        log.error("loading %s failed", self.spec.name, exc_info=error)
        return ModelUnavailable(f"{self.spec.name} could not be loaded ({type(error).__name__}).", code="failed")

    def _note(self, error: LikewiseError) -> None:
        if self._error is None or error.detail != self._error.detail:
            log.warning("%s is not in service: %s", self.spec.name, error.detail)
        self._error = error

    def _watch(self, done: int, total: int | None) -> None:
        if self._stopping.is_set():
            raise ModelUnavailable("not wanted any more")


async def _made_by(factory: ProviderFactory, spec: ModelSpec) -> Provider:
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
