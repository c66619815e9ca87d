"""A deterministic model, in this process or at an address: it answers well, or makes the trouble that it is told to."""

import asyncio
import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np
from semantic_text_splitter import TextSplitter

from likewise.embedding.models import ModelSpec
from likewise.embedding.provider import Capacity, Matrix, ProviderResult, Role, Vector
from likewise.embedding.splitting import TextSpan, spans
from likewise.testing.scripted import ReceivedRequest, ScriptedServer

_WORD = re.compile(r"\w+")


@dataclass(eq=False, repr=False)
class FakeProvider:
    """Makes unit vectors from hashed words: equal texts have equal vectors, texts that share words are alike.

    A token is a word; two special ones go around each text. The knobs may be turned at any time: `fail` is raised for
    each batch, or for batches with a text that `poison` is true of; `delay` seconds pass before each answer; while
    `gate` is set to an event, answers wait for it; `nan` and `wrong_count` spoil the answer. `calls` has each batch's
    size, in order, `texts` what was embedded, and `splits` the characters of what was split.
    """

    dimension: int = 384
    _: KW_ONLY
    max_tokens: int = 256
    capacity: Capacity = Capacity(tokens=2_048)  # noqa: RUF009 - it is frozen
    space: str = "fake"
    numerics: str = "fake-1/f32"
    fail: Exception | None = None
    poison: Callable[[str], bool] | None = None
    delay: float = 0.0
    gate: asyncio.Event | None = None
    estimated: bool = False
    nan: bool = False
    wrong_count: bool = False
    fault: str | None = None
    calls: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    splits: list[int] = field(default_factory=list)
    closed: bool = False

    def __post_init__(self) -> None:
        self.space = hashlib.sha256(f"{self.space} {self.dimension}".encode()).hexdigest()

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


class Upstream(ScriptedServer):
    """A remote model on the loopback, with the vectors of FakeProvider.

    It has an OpenAI-compatible `/embeddings`, and a `/rerank` as Cohere and Jina have it, or TEI. Unless it
    `counts`, it says nothing of tokens.
    """

    path = "/v1"

    def __init__(self, dimension: int = 16) -> None:
        super().__init__()
        self.model = FakeProvider(dimension)
        self.counts = True

    async def good(self, asked: ReceivedRequest) -> Any:
        """Scores, or the vectors of the texts that were asked for, as OpenAI writes them."""
        return await (self._ranked(asked) if asked.path.endswith("/rerank") else self._embedded(asked))

    async def _ranked(self, asked: ReceivedRequest) -> Any:
        """Scores by the words that a text shares with the query, best first, as rerankers answer."""
        query, *vectors = (await self.model.embed([asked.body["query"], *asked.texts], "document")).vectors
        scores = [min(1.0, max(0.0, float(query @ vector))) for vector in vectors]
        best = sorted(range(len(scores)), key=lambda place: -scores[place])
        if "texts" in asked.body:
            return [{"index": place, "score": scores[place]} for place in best]
        results = [{"index": place, "relevance_score": scores[place]} for place in best]
        tokens = sum(len(asked.body["query"].split()) + len(text.split()) for text in asked.texts)
        usage = {"usage": {"total_tokens": tokens}} if self.counts else {}
        return {"id": "theirs", "model": asked.body["model"], "results": results, **usage}

    async def _embedded(self, asked: ReceivedRequest) -> dict[str, Any]:
        texts = asked.texts
        made = await self.model.embed(texts, "document")
        in_base64 = asked.body.get("encoding_format") == "base64"
        data = [
            {"object": "embedding", "index": place, "embedding": written(vector, in_base64=in_base64)}
            for place, vector in enumerate(made.vectors)
        ]
        tokens = int(made.tokens.sum())
        usage = {"usage": {"prompt_tokens": tokens, "total_tokens": tokens}} if self.counts else {}
        return {"object": "list", "data": data, "model": asked.body["model"], **usage}


def _end(text: str, spans: Sequence[tuple[int, int]], room: int) -> int:
    """Return the place at which reading ends in a text of these words."""
    return spans[room - 1][1] if len(spans) > room else len(text)


def _direction(word: str, dimension: int) -> Vector:
    """Return a word's own direction: normal numbers from a generator seeded with its hash."""
    seed = int.from_bytes(hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    return np.random.default_rng(seed).standard_normal(dimension).astype(np.float32)


def written(vector: Any, *, in_base64: bool) -> Any:
    """A vector as a list, or as the base64 of little-endian float32."""
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode() if in_base64 else [float(x) for x in vector]
