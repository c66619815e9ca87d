"""One model for programs without an event loop, under the names of the system that `segments` replaces."""

import asyncio
import threading
from collections.abc import Coroutine, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from likewise.embedding.embedder import Embedder, OpenModel
from likewise.embedding.models import MODELS, ModelSpec, refuse_other_size
from likewise.embedding.provider import Matrix, ProviderFactory, Role
from likewise.settings import Settings, load_settings

T = TypeVar("T")

# Every model that Likewise knows, by its id on the hub.
MODEL_REGISTRY: Mapping[str, ModelSpec] = {spec.hub_id: spec for spec in MODELS}
# Who uses an adapter is one tenant.
_TENANT = 0


class EmbeddingAdapter:
    """A model that is called like a function; safe to use from several threads.

    Making one waits until its model is fetched and loaded, as `likewise.open` does, and tells on stderr how far it is.

    Args:
        settings: which model, and how it runs.
        providers: in place of models, by name, for tests.
    """

    def __init__(self, settings: Settings, *, providers: dict[str, ProviderFactory] | None = None) -> None:
        # Before the thread: what is wrong with the settings leaves none behind.
        self._embedder = Embedder(settings, providers=providers, wait_for_models=True)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="likewise-adapter", daemon=True)
        self._thread.start()
        try:
            self._model: OpenModel = self._run(self._opened())
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        """The model's id on the hub."""
        return self._model.spec.hub_id

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return self._model.dimension

    @property
    def max_seq_len(self) -> int:
        """Tokens that the model reads of a text; what is longer is cut off."""
        return self._model.max_tokens

    def embed(self, texts: Sequence[str], role: Role = "document") -> Matrix:
        """Return the texts' vectors, float32 (n, d) of unit length; errors are those of `Embedder.embed`."""
        return self._run(self._embedder.embed(_TENANT, texts, role=role)).vectors

    def close(self) -> None:
        """Let the model and the thread go."""
        if self._thread.is_alive():
            self._run(self._embedder.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _opened(self) -> OpenModel:
        await self._embedder.start()
        return await self._embedder.opened()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


@cache
def get_adapter() -> EmbeddingAdapter:
    """Return the one of this process, with the model of its settings; ModelUnavailable if that cannot be had."""
    return EmbeddingAdapter(load_settings())


def validate_adapter_dimension(expected: int, adapter: EmbeddingAdapter | None = None) -> None:
    """Refuse an adapter whose vectors have another number of numbers, with SettingsError."""
    adapter = adapter or get_adapter()
    refuse_other_size(adapter.name, adapter.dim, expected)
