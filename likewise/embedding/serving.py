"""The embedding models of one process: their rows, their states, and those in service."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from likewise.embedding.batching import Batcher
from likewise.embedding.files import weights
from likewise.embedding.loading import EMBEDDING, ModelHandle, ModelPool, ModelState
from likewise.embedding.memory import ModelMemory
from likewise.embedding.models import MOCK, Catalogue, ModelSpec, size_fault
from likewise.embedding.provider import Provider, ProviderFactory
from likewise.embedding.providers import mock
from likewise.embedding.queue import QueueBudget
from likewise.errors import ModelUnavailable
from likewise.settings import Settings


@dataclass(frozen=True)
class OpenModel:
    """A model in service."""

    spec: ModelSpec
    space: str
    numerics: str
    dimension: int
    max_tokens: int


class EmbeddingModels:
    """The models that the settings allow, each loaded when it is first asked for.

    Belongs to one event loop. `providers` replaces the local ones by model name, for tests. `budget` and `memory` are
    shared by models of any sort in this process. With `wait_for_models` callers wait for a model that is being fetched
    or loaded, and fail only if that fails; without it they are told to come again.
    """

    def __init__(
        self, settings: Settings, providers: Mapping[str, ProviderFactory] | None, *, wait_for_models: bool
    ) -> None:
        self._settings = settings
        self._catalogue = Catalogue(settings)
        self.wait_for_models = wait_for_models
        self.budget = QueueBudget(settings.queue_tokens)
        self.memory = ModelMemory(settings, keep=self._catalogue.specs()[0].name)
        made_up: dict[str, ProviderFactory] = {MOCK.name: mock.load} if settings.enable_mock else {}
        self._pool: ModelPool[Provider, Batcher] = ModelPool(
            settings, EMBEDDING, self.budget, self.memory,
            factories=made_up | dict(providers or {}), wait_for_models=wait_for_models,
        )  # fmt: skip

    def _handle(self, model: str | None) -> ModelHandle[Provider, Batcher]:
        return self._pool.handle(self._catalogue.resolve(model))

    async def opened(self, model: str | None = None, *, patience: float | None = None) -> OpenModel:
        """Return the model in service, loaded if need be; ModelUnavailable if that fails, or takes too many seconds."""
        spec = self._catalogue.resolve(model)
        provider, _ = await self._pool.handle(spec).ready(patience)
        return OpenModel(
            replace(spec, dimension=provider.dimension, max_tokens=provider.max_tokens),
            provider.space, provider.numerics, provider.dimension, provider.max_tokens,
        )  # fmt: skip

    async def dimension(self, spec: ModelSpec) -> int:
        """Return the dimension of the vectors of a new collection.

        ModelUnavailable if nobody knows, or if the settings want another size of the default model: its folder may have
        come after the start, which looks at that as well.
        """
        dimension = spec.dimension or (await self.opened(spec.name)).dimension
        if fault := size_fault(spec, dimension, self._settings):
            raise ModelUnavailable(fault, code="vector_size")
        return dimension

    def spec(self, model: str | None = None) -> ModelSpec:
        """Return the row of a model, which is not loaded by that.

        Invalid if it is not allowed; ModelUnavailable if only its files could tell its dimension, and they are absent.
        """
        spec = self.known(model)
        if not spec.dimension:
            raise weights.absent(spec, self._settings)
        return spec

    def known(self, model: str | None = None) -> ModelSpec:
        """Return the row of a model, of dimension 0 if its files are absent and nobody knows it."""
        return self._as_loaded(self._catalogue.named(model))

    def models(self) -> list[ModelSpec]:
        """Return the row of each allowed model, the default first."""
        return [self._as_loaded(spec) for spec in self._catalogue.specs()]

    def _as_loaded(self, spec: ModelSpec) -> ModelSpec:
        loaded = self._pool.loaded(spec.name)
        return replace(spec, dimension=loaded.dimension, max_tokens=loaded.max_tokens) if loaded else spec

    def space(self, name: str) -> str | None:
        """Return the space of the model of this short name; None before it is loaded."""
        loaded = self._pool.loaded(name)
        return loaded.space if loaded else None

    def is_ready(self, model: str | None = None) -> bool:
        """Return whether texts can be embedded now, without waiting for the model to load."""
        return self._pool.loaded(self._catalogue.resolve(model).name) is not None

    def states(self) -> list[ModelState]:
        """Return the state of each allowed model, the default first."""
        return [self._pool.state(spec, self._catalogue.runtime) for spec in self._catalogue.specs()]
