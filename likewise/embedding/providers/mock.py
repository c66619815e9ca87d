"""A model that is none: vectors follow from the SHA-256 of texts, so that programs can be tried without a model."""

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from likewise.embedding.models import ModelSpec
from likewise.embedding.provider import CHARS_PER_TOKEN, Capacity, ProviderResult, Role, Vector
from likewise.embedding.splitting import TextSpan, spans_by_characters

_ABOUT = b"likewise-mock-1"


def load(spec: ModelSpec) -> "MockProvider":
    """Return the provider, which needs no files."""
    return MockProvider(spec)


class MockProvider:
    """Equal texts have equal vectors, all others are about at right angles. Tokens are estimated by the characters."""

    def __init__(self, spec: ModelSpec) -> None:
        self.space = hashlib.sha256(_ABOUT).hexdigest()
        self.numerics = "mock"
        self.dimension = spec.dimension
        self.max_tokens = spec.max_tokens
        self.capacity = Capacity(tokens=8_192)
        self.fault: str | None = None

    async def embed(self, texts: Sequence[str], role: Role) -> ProviderResult:
        """Embed texts in order; queries are as documents."""
        read = [text[: self.max_tokens * CHARS_PER_TOKEN] for text in texts]
        lengths = np.array(await self.lengths(texts), np.int32)
        tokens = np.minimum(lengths, self.max_tokens)
        vectors = np.array([self._vector(text) for text in read], np.float32).reshape(len(texts), self.dimension)
        chars = np.array([len(text) for text in read], np.int32)
        return ProviderResult(vectors, tokens, lengths - tokens, chars, estimated=True)

    async def lengths(self, texts: Sequence[str]) -> list[int]:
        """Estimate the tokens of each text."""
        return [math.ceil(len(text) / CHARS_PER_TOKEN) for text in texts]

    async def split(self, text: str, max_tokens: int, overlap: int) -> list[TextSpan]:
        """Split a text by its characters."""
        return await spans_by_characters(text, min(max_tokens, self.max_tokens), overlap)

    async def close(self) -> None:
        """Do nothing."""

    def _vector(self, text: str) -> Vector:
        """Draw normal numbers from a generator that the digest seeds, at unit length."""
        seed = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest(), "big")
        row = np.random.default_rng(seed).standard_normal(self.dimension).astype(np.float32)
        vector: Vector = row / np.linalg.norm(row)
        return vector
