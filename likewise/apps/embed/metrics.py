"""What was embedded, under the names that the embedder gave it which this one replaces."""

from typing import Any

from likewise.embedding.costs import Usage
from likewise.embedding.embedder import Embedder


def told(used: Usage, embedder: Embedder) -> dict[str, Any]:
    """The sums as `GET /embed/metrics` tells them, costs in US dollars, and the models that are loaded now."""
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
    """The models in service, as this app calls them."""
    ready = {one.name for one in embedder.states() if one.state == "ready"}
    return [spec.bare_name for spec in embedder.models() if spec.name in ready]
