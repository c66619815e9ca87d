"""Text in, vectors out; knows no web framework and no SQL. Start at `Embedder`."""

from likewise.embedding.embedder import Embedded, Embedder, OpenModel
from likewise.embedding.loading import ModelState
from likewise.embedding.models import ModelSpec
from likewise.embedding.provider import Lane, Matrix, Provider, ProviderResult, Role

__all__ = [
    "Embedded",
    "Embedder",
    "Lane",
    "Matrix",
    "ModelSpec",
    "ModelState",
    "OpenModel",
    "Provider",
    "ProviderResult",
    "Role",
]
