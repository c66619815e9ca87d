"""Text in, vectors out, for programs that know the embedder that this one replaces, or OpenAI's API.

Over HTTP in `routes`, `openai` and `rerank`; as Python objects by these names.
"""

from likewise.apps.embed.adapter import MODEL_REGISTRY, EmbeddingAdapter, get_adapter, validate_adapter_dimension
from likewise.apps.embed.cache import EmbeddingCache
from likewise.apps.embed.service import (
    BatchEmbeddingResult,
    EmbedderService,
    EmbeddingModelConfig,
    EmbeddingProvider,
    EmbeddingResult,
    get_embedder_service,
)

__all__ = [
    "MODEL_REGISTRY",
    "BatchEmbeddingResult",
    "EmbedderService",
    "EmbeddingAdapter",
    "EmbeddingCache",
    "EmbeddingModelConfig",
    "EmbeddingProvider",
    "EmbeddingResult",
    "get_adapter",
    "get_embedder_service",
    "validate_adapter_dimension",
]
