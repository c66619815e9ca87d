"""The embedder as a Python object, under the names of the one that it replaces. It needs no database.

Its results, and the sums of them, are those of the routes too.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cache
from typing import Any, Self

from likewise.apps.embed.cache import url_of
from likewise.embedding.costs import Usage
from likewise.embedding.embedder import Embedded, Embedder
from likewise.embedding.models import MODELS, ModelSpec
from likewise.embedding.provider import ProviderFactory, Role
from likewise.settings import Settings, load_settings

# Who uses this object is one tenant.
TENANT = 0


class EmbeddingProvider(StrEnum):
    """The place where a model runs."""

    LOCAL = "local"
    OPENAI = "openai"


@dataclass(frozen=True)
class EmbeddingModelConfig:
    """One model; `cost_per_1k_tokens` in US dollars, `max_input_length` in tokens."""

    name: str
    provider: EmbeddingProvider
    dimension: int
    max_batch_size: int
    max_input_length: int
    cost_per_1k_tokens: float

    @classmethod
    def of(cls, spec: ModelSpec) -> Self:
        """Return the facts of a model."""
        return cls(
            spec.bare_name,
            EmbeddingProvider(spec.provider),
            spec.dimension,
            spec.max_texts,
            spec.max_tokens,
            spec.price_per_1k_tokens,
        )


@dataclass(frozen=True)
class EmbeddingResult:
    """One text's vector of unit length; `cost` in US dollars; `tokens` read, and `truncated_tokens` cut off."""

    embedding: list[float]
    dimension: int
    model: str
    cached: bool
    cost: float
    tokens: int
    truncated_tokens: int
    space: str


@dataclass(frozen=True)
class BatchEmbeddingResult:
    """The vectors of texts, in their order; `total_cost` in US dollars."""

    embeddings: list[list[float]]
    dimension: int
    model: str
    total_embeddings: int
    cached_count: int
    total_cost: float
    tokens: list[int]
    truncated_tokens: list[int]
    space: str


def facts_of_one(made: Embedded, model: str) -> dict[str, Any]:
    """Return all of an EmbeddingResult but the vector; `model` is the caller's name of it."""
    return {
        "dimension": made.vectors.shape[1],
        "model": model,
        "cached": bool(made.cached[0]),
        "cost": made.cost,
        "tokens": int(made.tokens[0]),
        "truncated_tokens": int(made.truncated[0]),
        "space": made.space,
    }


def facts_of_batch(made: Embedded, model: str) -> dict[str, Any]:
    """Return all of a BatchEmbeddingResult but the vectors."""
    return {
        "dimension": made.vectors.shape[1],
        "model": model,
        "total_embeddings": len(made.vectors),
        "cached_count": int(made.cached.sum()),
        "total_cost": made.cost,
        "tokens": made.tokens.tolist(),
        "truncated_tokens": made.truncated.tolist(),
        "space": made.space,
    }


@dataclass(frozen=True)
class Metrics:
    """Usage of the tenant since it last reset this; costs in US dollars."""

    total_embeddings_generated: int
    cache_hits: int
    cache_misses: int
    cache_hit_rate: float
    total_cost_usd: float
    cost_saved_usd: float
    models_loaded: list[str]

    @classmethod
    def of(cls, used: Usage, embedder: Embedder) -> Self:
        """Return the sums of usage, and the models that are loaded now."""
        rate = used.cached / used.texts if used.texts else 0.0
        costs = float(used.cost), float(used.cost_avoided)
        return cls(used.generated, used.cached, used.texts - used.cached, rate, *costs, loaded(embedder))


def loaded(embedder: Embedder) -> list[str]:
    """Return the models in service, by the names that this app has for them."""
    ready = {one.name for one in embedder.states() if one.state == "ready"}
    return [spec.bare_name for spec in embedder.models() if spec.name in ready]


class EmbedderService:
    """Vectors of texts, from any model of Likewise's.

    Belongs to one event loop; `async with` or `close` lets the models go. Callers wait while the default model is
    fetched and while any model is loaded, as those of `likewise.open` do, and stderr tells how far that is.

    Args:
        default_model: any of a model's names.
        openai_api_key: for OpenAI's models; LIKEWISE_OPENAI_API_KEY if absent.
        redis_client: of the `redis` package: its server keeps vectors too; that of LIKEWISE_REDIS_URL if absent.
        enable_caching: whether vectors are remembered at all.
        settings: everything else; read from the environment if absent.
        providers: in place of models, by name, for tests.
    """

    def __init__(
        self,
        default_model: str | None = None,
        openai_api_key: str | None = None,
        redis_client: Any = None,
        enable_caching: bool = True,
        *,
        settings: Settings | None = None,
        providers: dict[str, ProviderFactory] | None = None,
    ) -> None:
        self.settings = _settings(
            settings or load_settings(), default_model, openai_api_key, redis_client, enable_caching
        )
        self.embedder = Embedder(self.settings, providers=providers, wait_for_models=True)
        self._begun = False
        self._before = Usage()

    async def embed_text(self, text: str, model: str | None = None, use_cache: bool = True) -> EmbeddingResult:
        """Return the vector of a text, as a document; errors are those of `Embedder.embed`."""
        return self._one(await self._embed([text], model, use_cache, "document"))

    async def embed_query(self, query: str, model: str | None = None, use_cache: bool = True) -> EmbeddingResult:
        """Return the vector of a text that documents are searched for with."""
        return self._one(await self._embed([query], model, use_cache, "query"))

    async def embed_batch(
        self, texts: Sequence[str], model: str | None = None, batch_size: int | None = None, use_cache: bool = True
    ) -> BatchEmbeddingResult:
        """Return the vectors of texts, as documents; `batch_size` is how many go to a remote model at a time."""
        made = await self._embed(texts, model, use_cache, "document", batch_size)
        return BatchEmbeddingResult(embeddings=made.vectors.tolist(), **facts_of_batch(made, self._name(made)))

    def get_available_models(self) -> list[EmbeddingModelConfig]:
        """Return the models that may be named, the default first."""
        return [EmbeddingModelConfig.of(spec) for spec in self.embedder.models()]

    def get_metrics(self) -> dict[str, Any]:
        """Return the sums since the last reset, as `GET /embed/metrics` has them."""
        return asdict(Metrics.of(self._used().since(self._before), self.embedder))

    def reset_metrics(self) -> None:
        """Begin to count anew."""
        self._before = self._used()

    async def close(self) -> None:
        """Let the models and the caches go."""
        await self.embedder.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _embed(
        self, texts: Sequence[str], model: str | None, use_cache: bool, role: Role, batch_size: int | None = None
    ) -> Embedded:
        await self._begin(model)
        return await self.embedder.embed(
            TENANT, texts, model=model, role=role, use_cache=use_cache, batch_size=batch_size
        )

    async def _begin(self, model: str | None) -> None:
        """Have the default model fetched once somebody wants it; who only ever names others does without."""
        if not self._begun and (model is None or self.embedder.models()[0].answers_to(model)):
            self._begun = True
            await self.embedder.start()

    def _one(self, made: Embedded) -> EmbeddingResult:
        return EmbeddingResult(embedding=made.vectors[0].tolist(), **facts_of_one(made, self._name(made)))

    def _name(self, made: Embedded) -> str:
        return self.embedder.known(made.model).bare_name

    def _used(self) -> Usage:
        used = Usage()
        for _, one in self.embedder.ledger.of(TENANT):
            used.add(one)
        return used


@cache
def get_embedder_service() -> EmbedderService:
    """Return the one of this process, with the settings of its environment."""
    return EmbedderService()


def _settings(
    settings: Settings, model: str | None, openai_api_key: str | None, redis_client: Any, enable_caching: bool
) -> Settings:
    known = [spec.name for spec in MODELS]
    changes: dict[str, Any] = {"models_allowed": (*settings.models_allowed, *known)}
    if model is not None:
        changes["model"] = model
    if openai_api_key is not None:
        changes["openai_api_key"] = openai_api_key
    if not enable_caching:
        changes |= {"cache_bytes": 0, "redis_url": None}
    elif redis_client is not None:
        changes["redis_url"] = url_of(redis_client)
    return settings.model_copy(update=changes)
