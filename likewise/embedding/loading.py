"""Brings one model from its files to service, and keeps trying while it cannot."""

import asyncio
import contextlib
import importlib
import itertools
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextvars import Context
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from likewise.embedding import weights
from likewise.embedding.batching import Batcher, QueueBudget
from likewise.embedding.memory import ModelMemory, needed_by
from likewise.embedding.models import ModelSpec, local_spec
from likewise.embedding.provider import Provider, ProviderFactory
from likewise.embedding.runtimes import PROVIDERS, runtime_of
from likewise.errors import LikewiseError, ModelUnavailable
from likewise.settings import Settings

log = logging.getLogger(__name__)

LOCAL_RETRY_SECONDS = 2.0
NETWORK_RETRY_SECONDS = (30.0, 600.0)  # first and longest wait; it doubles
PATIENCE_SECONDS = 8.0  # for files that are here: half a second on two idle cores, some seconds on busy ones

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
    """How it stands with one model. `present`: its files are here, and nobody has asked for it yet."""

    name: str
    state: State
    reason: str | None = None


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
        self._settings = settings
        self.used = 0
        self._budget = budget
        self._memory = memory
        self._users = 0
        self._factory = factory
        self._error: LikewiseError | None = None
        self._failed_file: tuple[str, int, int] | None = None
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
        return ModelState(self.spec.name, _STATES.get(self._error.code, "failed"), self._error.detail)

    def begin(self, *, fetch: bool = False) -> None:
        """Start loading in the background, and go on until it works; `fetch` allows the network."""
        self._fetch_allowed = self._fetch_allowed or (fetch and not self._settings.offline)
        if self._task is None:
            self._error = None
            self._settled.clear()
            # In no request's context: it goes on after the one that happened to ask first.
            self._task = asyncio.create_task(self._load_until_ready(), context=Context())

    async def ready(self) -> tuple[Provider, Batcher]:
        """The model in service. Waits while files on this machine are being loaded, and for nothing else."""
        with self.held():
            self.begin()
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await self._settled.wait()
            except TimeoutError:
                raise ModelUnavailable(f"{self.spec.name} is still being loaded.", retry_after=2) from None
            if self.provider is None or self.batcher is None:
                raise _again(self._error)
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
        self.provider = self.batcher = self._task = self._failed_file = None
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
            except LikewiseError as error:
                self._note(error)
            except Exception as error:
                log.exception("loading %s failed", self.spec.name)
                self._note(
                    ModelUnavailable(f"{self.spec.name} could not be loaded ({type(error).__name__}).", code="failed")
                )
            self._settled.set()
            if self._error is not None and self._error.code == "model_memory":
                self._task = self._failed_file = None  # who asks next has it tried again; nobody else wants it
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
        self._refuse_known_failure(folder)
        self._settled.clear()
        needed = await asyncio.to_thread(needed_by, self.spec, folder, self._settings)
        return await self._within_memory(needed, lambda: asyncio.to_thread(self._load, folder))

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
            raise self._error if self._error is not None else missing
        self._error = ModelUnavailable(f"{self.spec.name} is being fetched.", code="weights_fetching", retry_after=10)
        self._settled.set()
        try:
            return await _in_thread(lambda: weights.obtain(self.spec, self._settings, self._watch))
        finally:
            self._fetch_at = time.monotonic() + self._fetch_wait
            self._fetch_wait = min(2 * self._fetch_wait, NETWORK_RETRY_SECONDS[1])

    def _load(self, folder: Path) -> Provider:
        spec = self.spec
        if spec.folder is not None and not spec.dimension:  # it was not there when we looked first
            spec = local_spec(spec.name, spec.folder)
        module = importlib.import_module(PROVIDERS[runtime_of(spec.architecture, spec.runtime, self._settings.device)])
        provider: Provider = module.load(spec, folder, self._settings)
        return provider

    def _refuse_known_failure(self, folder: Path) -> None:
        """Do not read 90 MB every other second to find again that they are the wrong ones."""
        signature = _signature(folder)
        if self._error is not None and signature == self._failed_file:
            raise self._error
        self._failed_file = signature

    def _note(self, error: LikewiseError) -> None:
        if self._error is None or error.detail != self._error.detail:
            log.warning("%s is not in service: %s", self.spec.name, error.detail)
        self._error = error

    def _watch(self, done: int, total: int | None) -> None:
        if self._stopping.is_set():
            raise ModelUnavailable("not wanted any more")


async def _made_by(factory: ProviderFactory, spec: ModelSpec) -> Provider:
    return factory(spec)


def _again(error: LikewiseError | None) -> ModelUnavailable:
    """That error for one more caller. Whatever keeps a model from loading, to a caller the model is away."""
    if error is None:
        return ModelUnavailable(retry_after=2)
    return ModelUnavailable(error.detail, code=error.code, retry_after=2, in_short=error.in_short)


def _signature(folder: Path) -> tuple[str, int, int] | None:
    for path in sorted(folder.rglob("model*.safetensors")):
        facts = path.stat()
        return str(path), facts.st_size, facts.st_mtime_ns
    return None


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
