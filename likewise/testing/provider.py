"""A deterministic model."""

import asyncio
import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from semantic_text_splitter import TextSplitter

from likewise.embedding.models import ModelSpec
from likewise.embedding.provider import Capacity, Matrix, ProviderResult, Role, Vector
from likewise.embedding.splitting import TextSpan, spans

_WORD = re.compile(r"\w+")


class FakeProvider:
    """Makes unit vectors from hashed words: equal texts have equal vectors, texts that share words are alike.

    A token is a word; two special ones go around each text. The knobs may be turned at any time: `fail` is raised for
    each batch, or for batches with a text that `poison` is true of; `delay` seconds pass before each answer; while
    `gate` is set to an event, answers wait for it; `nan` and `wrong_count` spoil the answer. `calls` has each batch's
    size, in order, `texts` what was embedded, and `splits` the characters of what was split.
    """

    def __init__(
        self,
        dimension: int = 384,
        *,
        max_tokens: int = 256,
        capacity: Capacity = Capacity(tokens=2_048),  # noqa: B008 - it is frozen
        space: str = "fake",
        numerics: str = "fake-1/f32",
        fail: Exception | None = None,
        poison: Callable[[str], bool] | None = None,
        delay: float = 0.0,
        gate: asyncio.Event | None = None,
        estimated: bool = False,
        nan: bool = False,
        wrong_count: bool = False,
    ) -> None:
        self.dimension = dimension
        self.max_tokens = max_tokens
        self.capacity = capacity
        self.fault: str | None = None
        self.space = hashlib.sha256(f"{space} {dimension}".encode()).hexdigest()
        self.numerics = numerics
        self.fail = fail
        self.poison = poison
        self.delay = delay
        self.gate = gate
        self.estimated = estimated
        self.nan = nan
        self.wrong_count = wrong_count
        self.calls: list[int] = []
        self.texts: list[str] = []
        self.splits: list[int] = []
        self.closed = False

    async def embed(self, texts: Sequence[str], role: Role) -> ProviderResult:
        """Return the texts' vectors and counts, or make the trouble that was asked for."""
        self.calls.append(len(texts))
        self.texts.extend(texts)
        if self.delay:
            await asyncio.sleep(self.delay)
        if self.gate is not None:
            await self.gate.wait()
        if self.fail is not None:
            raise self.fail
        if self.poison is not None and any(map(self.poison, texts)):
            raise RuntimeError("poison")
        result = self._result(texts[1:] if self.wrong_count else texts)
        if self.nan:
            result.vectors[:1] = np.nan
        return result

    async def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of words of each text, and two more."""
        return [len(_WORD.findall(text)) + 2 for text in texts]

    async def split(self, text: str, max_tokens: int, overlap: int) -> list[TextSpan]:
        """Split into parts of at most so many words, and two more."""
        self.splits.append(len(text))
        if self.gate is not None:
            await self.gate.wait()
        room = max(1, min(max_tokens, self.max_tokens) - 2)
        splitter = TextSplitter.from_callback(lambda part: len(_WORD.findall(part)), room, min(overlap, room - 1))
        return await asyncio.to_thread(spans, text, splitter)

    async def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True

    def _result(self, texts: Sequence[str]) -> ProviderResult:
        spans = [[match.span() for match in _WORD.finditer(text)] for text in texts]
        room = self.max_tokens - 2
        return ProviderResult(
            vectors=self._vectors([text[: _end(text, span, room)] for text, span in zip(texts, spans, strict=True)]),
            tokens=np.array([min(len(span), room) + 2 for span in spans], np.int32),
            truncated=np.array([max(0, len(span) - room) for span in spans], np.int32),
            chars_read=np.array([_end(text, span, room) for text, span in zip(texts, spans, strict=True)], np.int32),
            estimated=self.estimated,
        )

    def _vectors(self, texts: Sequence[str]) -> Matrix:
        return np.array([self._vector(text) for text in texts], np.float32).reshape(len(texts), self.dimension)

    def _vector(self, text: str) -> Vector:
        words = _WORD.findall(text.lower()) or [text]
        total = np.sum([_direction(word, self.dimension) for word in words], axis=0)
        vector: Vector = (total / np.linalg.norm(total)).astype(np.float32)
        return vector


class FakeLoader:
    """A factory of fake providers that counts them: `made` has each, with `options`, and claims `memory_bytes`."""

    def __init__(self, memory_bytes: int = 0, **options: Any) -> None:
        self.memory_bytes = memory_bytes
        self.options = options
        self.made: list[FakeProvider] = []

    def __call__(self, spec: ModelSpec) -> FakeProvider:
        """Return one more provider."""
        self.made.append(FakeProvider(**self.options))
        return self.made[-1]


def _end(text: str, spans: Sequence[tuple[int, int]], room: int) -> int:
    """Return the place at which reading ends in a text of these words."""
    return spans[room - 1][1] if len(spans) > room else len(text)


def _direction(word: str, dimension: int) -> Vector:
    """Return a word's own direction: normal numbers from a generator seeded with its hash."""
    seed = int.from_bytes(hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    return np.random.default_rng(seed).standard_normal(dimension).astype(np.float32)
