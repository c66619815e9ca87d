"""What all local models do, whichever program runs them: texts to ids, batches of similar length, counts."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from likewise.embedding.facts import ModelFacts
from likewise.embedding.packing import pack
from likewise.embedding.provider import Capacity, Matrix, ProviderResult, Role
from likewise.embedding.splitting import Span, spans
from likewise.embedding.tokenizing import Ids, TextTokenizer

CALLERS = 4  # calls at a time: some are tokenised while others are in the model


class LocalProvider(ABC):
    """One local model: a tokenizer, and what a program makes of the ids."""

    def __init__(
        self,
        facts: ModelFacts,
        tokenizer: TextTokenizer,
        before: Mapping[Role, str],
        *,
        batch_tokens: int,
        model_threads: int,
    ) -> None:
        """Of a loaded model.

        Args:
            facts: what it is known by.
            tokenizer: its own.
            before: what goes before a text, by role.
            batch_tokens: the padded size of a batch.
            model_threads: how many batches are in the model at a time.
        """
        self.space = facts.space
        self.numerics = facts.numerics
        self.dimension = facts.dimension
        self.max_tokens = facts.max_tokens
        self.capacity = Capacity(tokens=facts.call_tokens)
        self.fault: str | None = None
        self._tokenizer = tokenizer
        self._prefixes = before
        self._batch_tokens = batch_tokens
        self._callers = ThreadPoolExecutor(CALLERS, "likewise-embed")
        # A document takes up to seconds, in which no text waits for its ids.
        self._splitter = ThreadPoolExecutor(1, "likewise-split")
        self._model_threads = ThreadPoolExecutor(model_threads, "likewise-model")

    async def embed(self, texts: Sequence[str], role: Role) -> ProviderResult:
        """The texts' vectors and counts; texts of similar length share a batch."""
        return await asyncio.get_running_loop().run_in_executor(self._callers, self._embed, texts, role)

    async def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as a document, special ones included, before anything is cut off."""
        count, prefix = self._tokenizer.lengths, self._prefixes["document"]
        return await asyncio.get_running_loop().run_in_executor(self._callers, count, texts, prefix)

    async def split(self, text: str, most: int, overlap: int) -> list[Span]:
        """The parts of a text of at most so many tokens each, with so many of the last one's at their beginning."""
        return await asyncio.get_running_loop().run_in_executor(self._splitter, self._split, text, most, overlap)

    async def close(self) -> None:
        """Let the threads go."""
        self._splitter.shutdown(wait=False, cancel_futures=True)
        self._callers.shutdown(wait=False, cancel_futures=True)
        self._model_threads.shutdown(wait=False, cancel_futures=True)

    def _split(self, text: str, most: int, overlap: int) -> list[Span]:
        splitter = self._tokenizer.splitter(most, overlap, self._prefixes["document"])
        return spans(self._tokenizer.as_split(text), splitter)

    def _embed(self, texts: Sequence[str], role: Role) -> ProviderResult:
        encoded = self._tokenizer.encode(texts, self._prefixes[role])
        lengths = [len(each.ids) for each in encoded]
        return ProviderResult(
            vectors=self._vectors([each.ids for each in encoded], pack(lengths, self._batch_tokens), role),
            tokens=np.array(lengths, np.int32),
            truncated=np.array([each.truncated for each in encoded], np.int32),
            chars_read=np.array([each.chars_read for each in encoded], np.int32),
        )

    @abstractmethod
    def _vectors(self, ids: Sequence[Ids], batches: Sequence[Sequence[int]], role: Role) -> Matrix:
        """Unit vectors float32 (n, d) of n texts' ids; each batch has the places of texts that go in together."""
