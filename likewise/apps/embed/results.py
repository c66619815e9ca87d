"""Results of embedding and sums of them, over HTTP and in Python alike."""

from dataclasses import dataclass
from typing import Any

from likewise.embedding.costs import Usage
from likewise.embedding.embedder import Embedded, Embedder


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


def usage_metrics(used: Usage, embedder: Embedder) -> dict[str, Any]:
    """Return the sums as `GET /embed/metrics` has them, costs in US dollars, and the models that are loaded now."""
    return {
        "total_embeddings_generated": used.generated,
        "cache_hits": used.cached,
        "cache_misses": used.texts - used.cached,
        "cache_hit_rate": used.cached / used.texts if used.texts else 0.0,
        "total_cost_usd": float(used.cost),
        "cost_saved_usd": float(used.cost_avoided),
        "models_loaded": loaded(embedder),
    }


def loaded(embedder: Embedder) -> list[str]:
    """Return the models in service, by the names that this app has for them."""
    ready = {one.name for one in embedder.states() if one.state == "ready"}
    return [spec.bare_name for spec in embedder.models() if spec.name in ready]
