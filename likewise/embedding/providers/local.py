"""The part that all local models share: texts to ids, batches of similar length, counts."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from likewise.embedding.provider import Capacity, Matrix, ProviderResult, Role
from likewise.embedding.splitting import TextSpan, spans
from likewise.embedding.tokenizing import Ids, TextTokenizer

CALLERS = 4  # calls at a time: some are tokenised while others are in the model
# The largest call may take so long: a second of a new processor is ten of an old one, and minutes beside other load.
CALL_SECONDS = 600.0


@dataclass(kw_only=True, eq=False, repr=False)
class LocalProvider(ABC):
    """One local model: a tokenizer, and a program that makes vectors of the ids.

    Attributes:
        before: the text before each text, by role.
        batch_tokens: the padded size of a batch.
        model_threads: the number of batches in the model at a time.
    """

    space: str
    numerics: str
    dimension: int
    max_tokens: int
    capacity: Capacity
    tokenizer: TextTokenizer
    before: Mapping[Role, str]
    batch_tokens: int
    model_threads: int
    fault: str | None = None

    def __post_init__(self) -> None:
        self._callers = ThreadPoolExecutor(CALLERS, "likewise-embed")
        # A document takes up to seconds, in which no text waits for its ids.
        self._splitter = ThreadPoolExecutor(1, "likewise-split")
        self._model_threads = ThreadPoolExecutor(self.model_threads, "likewise-model")

    async def embed(self, texts: Sequence[str], role: Role) -> ProviderResult:
        """Embed texts in order; texts of similar length share a batch."""
        return await asyncio.get_running_loop().run_in_executor(self._callers, self._embed, texts, role)

    async def lengths(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text as a document, special ones included, before anything is cut off."""
        count, prefix = self.tokenizer.lengths, self.before["document"]
        return await asyncio.get_running_loop().run_in_executor(self._callers, count, texts, prefix)

    async def split(self, text: str, max_tokens: int, overlap: int) -> list[TextSpan]:
        """Split a text into parts of at most so many tokens, which begin with so many of the part before."""
        return await asyncio.get_running_loop().run_in_executor(self._splitter, self._split, text, max_tokens, overlap)

    async def close(self) -> None:
        """Let the threads go."""
        for threads in (self._splitter, self._callers, self._model_threads):
            threads.shutdown(wait=False, cancel_futures=True)

    def _split(self, text: str, max_tokens: int, overlap: int) -> list[TextSpan]:
        splitter = self.tokenizer.splitter(max_tokens, overlap, self.before["document"])
        return spans(self.tokenizer.as_split(text), splitter)

    def _embed(self, texts: Sequence[str], role: Role) -> ProviderResult:
        encoded = self.tokenizer.encode(texts, self.before[role])
        lengths = [len(each.ids) for each in encoded]
        return ProviderResult(
            vectors=self._vectors([each.ids for each in encoded], pack(lengths, self.batch_tokens), role),
            tokens=np.array(lengths, np.int32),
            truncated=np.array([each.truncated for each in encoded], np.int32),
            chars_read=np.array([each.chars_read for each in encoded], np.int32),
        )

    @abstractmethod
    def _vectors(self, ids: Sequence[Ids], batches: Sequence[Sequence[int]], role: Role) -> Matrix:
        """Make unit vectors float32 (n, d) of n texts' ids; each batch has the places of texts that go in together."""


def pack(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Group places of texts to batches of neighbours by length, whose padded size stays within `limit` tokens."""
    batches: list[list[int]] = []
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[place] > limit:
            batches.append(batch)
            batch = []
        batch.append(place)
    return [*batches, batch] if batch else batches
